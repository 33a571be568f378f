"""What a run would do: which stages are up to date, which run, and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.errors import (
    ArtifactError,
    RecipeError,
    RlhfError,
    SourceError,
    UsageError,
    nearest,
)
from pipeline.contract.artifacts import Artifact, find
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import (
    Settings,
    SourceSettings,
    UserFunction,
    beside_result,
    external_location,
    is_external,
    references,
    same_result,
    walk,
    without,
)
from pipeline.recipe.load import Recipe
from pipeline.run.changes import changes, why_changed
from pipeline.run.unfinished import Attempt, attempt_in

Action = Literal["up to date", "run", "resume", "not selected"]


@dataclass(frozen=True)
class Step:
    """What happens to one stage, and why."""

    stage: str
    action: Action
    reason: str


@dataclass(frozen=True)
class Selection:
    """Which stages a command asks for.

    Attributes:
        start: first stage, in the recipe's order; earlier ones are used as they are.
        until: last stage.
        only: this one alone.
        force: run the selected stages even when they are up to date.
    """

    start: str | None = None
    until: str | None = None
    only: str | None = None
    force: bool = False

    def stages(self, recipe: Recipe) -> list[str]:
        """Return the selected stages in order.

        Raises:
            UsageError: a name is no stage of the recipe, or the options contradict.
        """
        order = list(recipe.stages)
        for option, name in (
            ("--from", self.start),
            ("--until", self.until),
            ("--only", self.only),
        ):
            if name is not None and name not in order:
                raise UsageError(
                    f"{option} {name}: {recipe.path} has no such stage; it has "
                    f"{', '.join(order)}.{nearest(name, order)}"
                )
        if self.only is not None:
            if self.start or self.until:
                raise UsageError("--only goes with neither --from nor --until; give one of them")
            return [self.only]
        first = order.index(self.start) if self.start else 0
        last = order.index(self.until) if self.until else len(order) - 1
        if first > last:
            raise UsageError(
                f"--from {self.start} comes after --until {self.until}: the order is "
                f"{', '.join(order)}"
            )
        return order[first : last + 1]


def stage_key(recipe: Recipe, stage: str, parents: Mapping[str, str]) -> dict[str, Any]:
    """Return all that a stage's result follows from; equal keys mean equal results.

    Args:
        recipe: the recipe.
        stage: a stage of it.
        parents: digest of each parent's artifact.
    """
    settings = recipe.stages[stage]
    functions = function_fingerprints(settings, stage)
    return {
        "kind": settings.kind,
        "version": recipe.kind(stage).version,
        "settings": settings.key_settings(),
        "seed": recipe.seed(stage),
        "parents": dict(parents),
        "sources": source_fingerprints(settings, stage),
        "external": {
            target: _external_fingerprint(target)
            for target, _ in references(settings).values()
            if is_external(target)
        },
        **({"functions": functions} if functions else {}),
    }


def key_digest(key: Mapping[str, Any]) -> str:
    """Return the digest of a stage's key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def source_fingerprints(settings: Settings, stage: str) -> dict[str, str]:
    """Return the fingerprint of every source that a stage reads, by its place.

    Raises:
        SourceError: a local source is not there; names the setting.
    """
    from data.sources.fingerprint import fingerprint

    found = {}
    for place, source in find_sources(settings).items():
        try:
            found[place] = fingerprint(**source.read_arguments())
        except SourceError as error:
            raise SourceError(f"stages.{stage}.{place}: {error}") from error
    return found


def find_sources(settings: Settings) -> dict[str, SourceSettings]:
    """Return the sources that settings hold, by their dotted place."""
    return {place: item for place, item, *_ in walk(settings) if isinstance(item, SourceSettings)}


def function_fingerprints(settings: Settings, stage: str) -> dict[str, str]:
    """Return the sha256 of the file of each function of the user that a stage names.

    Raises:
        RecipeError: no `--plugin` file has such a function; names the setting.
    """
    from reward.functions import require_function

    found = {}
    for place, name, marks, _ in walk(settings):
        if name is not None and any(isinstance(mark, UserFunction) for mark in marks):
            try:
                found[name] = require_function(name)
            except RecipeError as error:
                raise RecipeError(f"stages.{stage}.{place}: {error}") from None
    return found


def _external_fingerprint(target: str) -> str:
    """Return a digest of names, sizes and times of a local checkpoint; the id of a hub one."""
    folder = Path(external_location(target)).expanduser()
    if not folder.is_dir():
        return target
    entries = [
        f"{p.relative_to(folder).as_posix()} {p.stat().st_size} {p.stat().st_mtime_ns}"
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    ]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


class Planner:
    """Decides stage by stage, knowing what was decided for the ones before."""

    def __init__(self, recipe: Recipe, run: Path, selection: Selection) -> None:
        self.recipe, self.run = recipe, run
        self.selected = selection.stages(recipe)
        self.force = selection.force
        self.stale: set[str] = set()

    def plan(self) -> list[Step]:
        """Return a step for every stage of the recipe, in order."""
        steps = []
        for stage in self.recipe.stages:
            step = self.step(stage)
            if step.action in ("run", "resume"):
                self.stale.add(stage)
            steps.append(step)
        return steps

    def step(self, stage: str) -> Step:
        """Decide one stage from the artifacts on disk and the stale stages before it.

        Raises:
            ArtifactError: a parent that is not selected has never finished.
        """
        artifact = find(self.run / stage)
        if stage not in self.selected:
            return self._unselected(stage, artifact)
        if self.force:
            return Step(stage, "run", "--force")
        changed = [p for p in self.recipe.parents(stage) if p in self.stale]
        if changed:
            return Step(stage, "run", self._after(stage, ", ".join(changed)))
        key = self.key(stage)
        if artifact is None:
            return self._unfinished(stage, key)
        before = self._inputs(artifact)
        if key_digest(key) in (artifact.manifest["key"], key_digest(before)):
            others = self._following(artifact)
            if others:
                told = f"{'; '.join(others)}: it changes the result with this model"
                return Step(stage, "run", told)
            return Step(stage, "up to date", "nothing it depends on changed")
        beside = (artifact.manifest.get("beside", {}), beside_result(self.recipe.stages[stage]))
        return Step(stage, "run", why_changed(before, key, beside=beside))

    def why_outdated(self, stage: str) -> str | None:
        """Tell why a finished stage no longer fits the recipe, its sources or its parents.

        What is outdated makes the stages after it so; None for a stage that still fits.
        """
        try:
            step = self.step(stage)
        except RlhfError as error:
            why = str(error)
        else:
            if step.action == "up to date":
                return None
            why = step.reason
        self.stale.add(stage)
        return why

    def _following(self, artifact: Artifact) -> list[str]:
        """Return in words what differs of the settings that matter with this model alone."""
        before = artifact.manifest.get("beside", {})
        now = beside_result(self.recipe.stages[artifact.name])
        names = artifact.manifest.get("follows_from", ())
        old, new = ({n: part[n] for n in names if n in part} for part in (before, now))
        return changes(old, new)

    def _inputs(self, artifact: Artifact) -> dict[str, Any]:
        """Return what an artifact follows from; once settings beside that were part of it."""
        inputs: dict[str, Any] = artifact.manifest["inputs"]
        if "beside" in artifact.manifest:
            return inputs
        beside = same_result(self.recipe.stages[artifact.name])
        return {**inputs, "settings": without(inputs.get("settings", {}), beside)}

    def _unfinished(self, stage: str, key: Mapping[str, Any]) -> Step:
        """Decide a stage that has not finished: go on, begin anew, or begin."""
        attempt = self.attempt(stage, key)
        if attempt.step is not None:
            beside = attempt.facts().get("beside", {})
            others = changes(beside, beside_result(self.recipe.stages[stage]))
            told = f", with {'; '.join(others)}" if others and beside else ""
            return Step(stage, "resume", f"was cut off, goes on from its last checkpoint{told}")
        former = attempt_in(self.run / stage)
        if former is None or former.digest == attempt.digest:
            return Step(stage, "run", "has not run yet")
        before = former.facts().get("key")
        beside = (former.facts().get("beside", {}), beside_result(self.recipe.stages[stage]))
        why = (
            "an earlier version began it"
            if before is None
            else why_changed(before, key, beside=beside)
        )
        command = former.command()
        on = f"; to go on with that: {command}" if command else ""
        return Step(
            stage,
            "run",
            f"begins anew, {why}: {former.what} is set aside in {former.aside} until the stage "
            f"is done{on}",
        )

    def _after(self, stage: str, parents: str) -> str:
        """Tell why a stage runs whose parents do, and what becomes of what it has begun."""
        told = f"{parents} runs before it"
        former = attempt_in(self.run / stage)
        if former is None or find(self.run / stage) is not None:
            return told
        return f"{told}; {former.what} is set aside if that changes anything"

    def attempt(self, stage: str, key: Mapping[str, Any]) -> Attempt:
        """Return the attempt that a stage of this key goes on with, or else begins.

        Keys once held the settings that change no result: its state may be of such a one.
        """
        settings = self.recipe.stages[stage]
        attempt = Attempt(self.run / stage, key_digest(key))
        if attempt.step is not None or not settings.takes_older_states:
            return attempt
        older = key_digest({**key, "settings": settings.recorded_settings()})
        before = Attempt(self.run / stage, older)
        return before if before.step is not None else attempt

    def key(self, stage: str) -> dict[str, Any]:
        """Return the key of a stage whose parents have all finished."""
        return stage_key(self.recipe, stage, self.parent_digests(stage))

    def parent_digests(self, stage: str) -> dict[str, str]:
        """Return the digest of each parent's artifact.

        Raises:
            ArtifactError: a parent has not finished.
        """
        digests = {}
        for parent in self.recipe.parents(stage):
            artifact = find(self.run / parent)
            if artifact is None:
                raise ArtifactError(
                    f"stage {stage} needs {parent}, which has not finished in {self.run}; "
                    f"run it first, without --from or --only"
                )
            digests[parent] = artifact.digest
        return digests

    def hand_over(self, stage: str, *, processes: int = 1) -> HandOver:
        """Return the view that the stage's check has: only artifacts that will not be replaced."""

        def finished(name: str) -> Artifact | None:
            return None if name in self.stale else find(self.run / name)

        return HandOver(stage, self.recipe.stages, finished, processes)

    def _unselected(self, stage: str, artifact: Artifact | None) -> Step:
        needed = any(stage in self.recipe.parents(other) for other in self.selected)
        if artifact is None and needed:
            raise ArtifactError(
                f"stage {stage} has not finished in {self.run}, and a selected stage needs it; "
                "leave out --from and --only, or run it first"
            )
        return Step(stage, "not selected", "used as it is" if needed else "")
