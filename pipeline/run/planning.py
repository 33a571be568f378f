"""What a run would do: which stages are up to date, which run, and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
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
from data.storage import expand
from pipeline.contract.artifacts import Artifact, find, verify
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import (
    HashedFolder,
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
from pipeline.contract.tool_settings import ToolChoice
from pipeline.recipe.load import Recipe
from pipeline.run.changes import changes, why_changed
from pipeline.run.unfinished import Attempt, attempt_in

Action = Literal["up to date", "run", "resume", "reuse", "not selected"]


@dataclass(frozen=True)
class Step:
    """What happens to one stage, and why.

    Attributes:
        stage: its name.
        action: what happens.
        reason: why.
        key: all that its result follows from; None where that hangs on a stage that runs before.
    """

    stage: str
    action: Action
    reason: str
    key: Mapping[str, Any] | None = field(default=None, repr=False)


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


def stage_inputs(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return what a stage's result follows from beside the artifacts of its parents.

    Raises:
        SourceError: a local source is not there; names the setting.
        RecipeError: no `--plugin` file has a function that the stage names; names the setting.
    """
    from data.sources.fingerprint import fingerprint
    from data.sources.source import Source
    from reward.functions import REWARDS

    settings = recipe.stages[stage]
    sources, functions = {}, {}
    tools: dict[str, str] = {}
    for place, value, marks, _ in walk(settings):
        try:
            if isinstance(value, SourceSettings):
                if value.stage is None:  # else its key is among those of the parents
                    sources[place] = fingerprint(value.source())
            elif value is not None and any(isinstance(mark, UserFunction) for mark in marks):
                functions[value] = REWARDS.sha256(value)
            elif value is not None and any(isinstance(mark, HashedFolder) for mark in marks):
                sources[place] = fingerprint(Source(hub=value))
            elif isinstance(value, ToolChoice):
                from pipeline.generation.tools.toolbox import tool_key

                found = tool_key(value.name, value.options)
                tools |= found.functions
                sources |= {f"{place}.options.{name}": key for name, key in found.files.items()}
        except (SourceError, RecipeError) as error:
            raise type(error)(f"stages.{stage}.{place}: {error}") from error
    return {
        "kind": settings.kind,
        "version": recipe.kind(stage).version,
        "settings": settings.key_settings(),
        "seed": recipe.seed(stage),
        "sources": sources,
        "external": {
            target: _external_fingerprint(target)
            for target, _ in references(settings).values()
            if is_external(target)
        },
        **({"functions": functions} if functions else {}),
        **({"tools": tools} if tools else {}),
    }


def key_digest(key: Mapping[str, Any]) -> str:
    """Return the digest of a stage's key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _external_fingerprint(target: str) -> str:
    """Return a digest of names, sizes and times of a local checkpoint; the id of a hub one."""
    folder = expand(external_location(target))
    if not folder.is_dir():
        return target
    entries = [
        f"{p.relative_to(folder).as_posix()} {p.stat().st_size} {p.stat().st_mtime_ns}"
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    ]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


class Planner:
    """Decides stage by stage, knowing what was decided for the ones before.

    Attributes:
        recipe: the recipe.
        folder: the run folder.
        selected: the stages that the command asks for, in order.
        force: whether they run even when they are up to date.
        reuse: folders of other runs, whose stages of equal keys are taken over.
        taken: stages that are to be taken over, as they stand there.
        stale: stages whose artifact, if there is one, is not the one that later stages will read.
        artifact: returns what a stage left, None where it has not finished.
        verified: the same, all its files looked at.
        inputs: `stage_inputs` of a stage. All are looked up once, until `look_again`.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        selection: Selection | None = None,
        reuse: Sequence[Path] = (),
    ) -> None:
        selection = selection or Selection()
        self.recipe, self.folder, self.reuse = recipe, folder, reuse
        self.taken: dict[str, Artifact] = {}
        self.selected = selection.stages(recipe)
        self.force = selection.force
        self.stale: set[str] = set()
        self.artifact = cache(lambda stage: self.taken.get(stage) or find(folder / stage))
        self.verified = cache(
            lambda stage: (published := self.artifact(stage)) and verify(published)
        )
        self.inputs = cache(lambda stage: stage_inputs(recipe, stage))

    def look_again(self) -> None:
        """Forget artifacts and inputs that were looked up: they may be others by now."""
        self.artifact.cache_clear()
        self.verified.cache_clear()
        self.inputs.cache_clear()

    def artifacts(self) -> dict[str, Artifact]:
        """Return the artifact of every stage that has one, in the recipe's order."""
        artifacts = {stage: self.artifact(stage) for stage in self.recipe.stages}
        return {stage: artifact for stage, artifact in artifacts.items() if artifact is not None}

    def plan(self) -> list[Step]:
        """Return a step for every stage of the recipe, in order.

        Raises:
            ArtifactError: a parent that is not selected has never finished.
        """
        self.artifacts()  # one that can't be read is told before anything runs, wanted or not
        steps = []
        for stage in self.recipe.stages:
            if stage not in self.selected:
                step = self._unselected(stage)
            elif self.force:
                step = Step(stage, "run", "--force")
            else:
                step = self.decide(stage)
            if step.action in ("run", "resume"):
                self.stale.add(stage)
            steps.append(step)
        return steps

    def at_its_turn(self, step: Step) -> Step:
        """Return a planned step as it stands when all stages before it are done.

        It is decided anew if it has another key by now: a parent left a new artifact, or a source
        was changed since. So a stage runs with the key of the sources that it finds.
        """
        if step.action not in ("run", "resume"):
            return step
        self.look_again()
        key = self.key(step.stage)
        if key == step.key:
            return step
        if self.force:
            return replace(step, key=key)
        return self._decide(step.stage, key)

    def decide(self, stage: str) -> Step:
        """Decide one stage from the artifacts on disk and the stale stages before it.

        Raises:
            ArtifactError: a parent has not finished.
        """
        running = [parent for parent in self.recipe.parents(stage) if parent in self.stale]
        if running:
            return Step(stage, "run", self._after(stage, ", ".join(running)))
        return self._decide(stage, self.key(stage))

    def _decide(self, stage: str, key: Mapping[str, Any]) -> Step:
        artifact = self.artifact(stage)
        other = None if artifact is None else self._other_than(stage, key, artifact)
        if artifact is not None and other is None:
            return Step(stage, "up to date", "nothing it depends on changed", key)
        for run in self.reuse:
            there = find(run / stage)
            if there and there.name == stage and self._other_than(stage, key, there) is None:
                self.taken[stage] = there
                self.artifact.cache_clear()
                self.verified.cache_clear()
                return Step(stage, "reuse", f"taken over from {run}", key)
        return self._unfinished(stage, key) if other is None else Step(stage, "run", other, key)

    def _other_than(self, stage: str, key: Mapping[str, Any], artifact: Artifact) -> str | None:
        """Tell why an artifact is not what a stage of this key leaves; None where it is."""
        before = self._inputs_of(artifact)
        beside = (artifact.manifest.get("beside", {}), beside_result(self.recipe.stages[stage]))
        if key_digest(key) not in (artifact.manifest["key"], key_digest(before)):
            return why_changed(before, key, beside=beside)
        # Settings beside the key that the result does follow from with this stage's model.
        names = artifact.manifest.get("follows_from", ())
        others = changes(*({n: part[n] for n in names if n in part} for part in beside))
        return f"{'; '.join(others)}: it changes the result with this model" if others else None

    def why_outdated(self, stage: str) -> str | None:
        """Tell why a finished stage no longer fits the recipe, its sources or its parents.

        What is outdated makes the stages after it so; None for a stage that still fits.
        """
        try:
            step = self.decide(stage)
        except RlhfError as error:
            reason = str(error)
        else:
            if step.action == "up to date":
                return None
            reason = step.reason
        self.stale.add(stage)
        return reason

    def _inputs_of(self, artifact: Artifact) -> dict[str, Any]:
        """Return what an artifact follows from; once settings beside that were part of it."""
        inputs: dict[str, Any] = artifact.manifest.get("inputs", {})
        if "beside" in artifact.manifest:
            return inputs
        beside = same_result(self.recipe.stages[artifact.name])
        return {**inputs, "settings": without(inputs.get("settings", {}), beside)}

    def _unfinished(self, stage: str, key: Mapping[str, Any]) -> Step:
        """Decide a stage that has not finished: go on, begin anew, or begin."""
        attempt = self.attempt(stage, key)
        now = beside_result(self.recipe.stages[stage])
        if attempt.step is not None:
            before = attempt.facts().get("beside", {})
            others = changes(before, now)
            more = f", with {'; '.join(others)}" if others and before else ""
            reason = f"was cut off, goes on from its last checkpoint{more}"
            return Step(stage, "resume", reason, key)
        former = attempt_in(self.folder / stage)
        if former is None or former.digest == attempt.digest:
            return Step(stage, "run", "has not run yet", key)
        facts = former.facts()
        why = "an earlier version began it"
        if "key" in facts:
            why = why_changed(facts["key"], key, beside=(facts.get("beside", {}), now))
        command = former.command()
        on = f"; to go on with that: {command}" if command else ""
        reason = (
            f"begins anew, {why}: {former.what} is set aside in {former.aside} until the stage "
            f"is done{on}"
        )
        return Step(stage, "run", reason, key)

    def _after(self, stage: str, parents: str) -> str:
        """Tell why a stage runs whose parents do, and what becomes of what it has begun."""
        reason = f"{parents} runs before it"
        former = attempt_in(self.folder / stage)
        if former is None or self.artifact(stage) is not None:
            return reason
        return f"{reason}; {former.what} is set aside if that changes anything"

    def attempt(self, stage: str, key: Mapping[str, Any]) -> Attempt:
        """Return the attempt that a stage of this key goes on with, or else begins.

        Keys once held the settings that change no result: its state may be of such a one.
        """
        settings = self.recipe.stages[stage]
        attempt = Attempt(self.folder / stage, key_digest(key))
        if attempt.step is not None or not settings.takes_older_states:
            return attempt
        older = key_digest({**key, "settings": settings.recorded_settings()})
        before = Attempt(self.folder / stage, older)
        return before if before.step is not None else attempt

    def key(self, stage: str) -> dict[str, Any]:
        """Return all that a stage's result follows from; equal keys mean equal results.

        Raises:
            ArtifactError: a parent has not finished.
        """
        parents = {}
        for parent in self.recipe.parents(stage):
            artifact = self.artifact(parent)
            if artifact is None:
                raise ArtifactError(
                    f"stage {stage} needs {parent}, which has not finished in {self.folder}; "
                    f"run it first, without --from or --only"
                )
            parents[parent] = artifact.digest
        return {**self.inputs(stage), "parents": parents}

    def hand_over(self, stage: str, *, processes: int = 1) -> HandOver:
        """Return the view that the stage's check has: only artifacts that will not be replaced."""
        return HandOver(
            stage,
            self.recipe.stages,
            lambda name: None if name in self.stale else self.artifact(name),
            processes,
        )

    def _unselected(self, stage: str) -> Step:
        needed = any(stage in self.recipe.parents(other) for other in self.selected)
        order = list(self.recipe.stages)
        earlier = order.index(stage) < order.index(self.selected[0])
        ready = all(self.artifact(parent) for parent in self.recipe.parents(stage))
        if self.reuse and earlier and ready and self.artifact(stage) is None:
            step = self.decide(stage)
            if step.action == "reuse":
                return step
        if needed and self.artifact(stage) is None:
            raise ArtifactError(
                f"stage {stage} has not finished in {self.folder}, and a selected stage needs it; "
                "leave out --from and --only, or run it first"
            )
        return Step(stage, "not selected", "used as it is" if needed else "")
