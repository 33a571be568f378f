"""What is published: a model that a finished stage left, and how the stage stands in its run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import ArtifactError, RlhfError, UsageError
from data.storage import expand
from pipeline.contract.artifacts import Artifact, find, verify
from pipeline.contract.facts import ADAPTER
from pipeline.run.listing import load_run
from pipeline.run.planning import Planner
from pipeline.run.runner import RESOLVED
from pipeline.run.standing import holder, unfinished_state

_DEEP = 2
"""Folders between a stage's own and a model's, as in `ppo/best/model`."""
_MODEL = ("config.json", ADAPTER)
_OF_WEIGHTS = ("config.json", "generation_config.json", "model.", "model-")
"""How the names of files begin that belong to a whole model's weights."""


@dataclass(frozen=True)
class Subject:
    """A model of a finished stage.

    Attributes:
        stage: what the stage left, all of it verified.
        part: folder of the model inside the stage's, such as "model" or "best/model".
        run: the run's stages by its recipe as it is now; None where the run is not there.
    """

    stage: Artifact
    part: str
    run: Planner | None

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.stage.folder / self.part

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter of peft, without the model below it."""
        return f"{self.part}/{ADAPTER}" in self.stage.manifest["files"]

    @property
    def whole(self) -> Path:
        """The folder of the whole model: of an adapter that with it merged."""
        return self.stage.folder / "model" if self.is_adapter else self.folder

    @property
    def files(self) -> dict[str, tuple[Path, str]]:
        """Each file of the model by its path in the published folder, with its sha256.

        An adapter has the tokenizer of the whole model, which its stage left there alone.
        """
        found = self._in(self.part)
        if self.is_adapter:
            rest = self._in("model").items()
            found |= {n: file for n, file in rest if not n.startswith(_OF_WEIGHTS)}
        return found

    def _in(self, part: str) -> dict[str, tuple[Path, str]]:
        before = f"{part}/"
        return {
            name.removeprefix(before): (self.stage.folder / name, entry["sha256"])
            for name, entry in self.stage.manifest["files"].items()
            if name.startswith(before)
        }

    def standing(self) -> tuple[list[str], list[str]]:
        """Tell why the stage is outdated, and of which stages that can't be told, in sentences.

        Both are empty for a stage that fits its recipe, its sources and its parents as they are.
        """
        if self.run is None:
            place = self.stage.folder.parent
            return [], [f"{place} has no {RESOLVED}: whether {self.stage.name} is outdated"]
        unknown: list[str] = []
        first = ""
        for name in _ancestors(self.run, self.stage.name):
            try:
                step = self.run.decide(name)
            except RlhfError as error:
                unknown.append(f"{error}: whether {name} is outdated")
                continue
            if step.action != "up to date":
                self.run.stale.add(name)
                first = first or f"{name}: {step.reason}"
        return ([first] if self.stage.name in self.run.stale else []), unknown


def _ancestors(run: Planner, stage: str) -> Iterator[str]:
    """Yield the stages that a stage follows from, and it last."""
    wanted = {stage}
    for name in reversed([*run.recipe.stages]):
        if name in wanted:
            wanted.update(run.recipe.parents(name))
    yield from (name for name in run.recipe.stages if name in wanted)


def find_subject(given: str) -> Subject:
    """Return the model that a user named: by a stage's folder, or by a model's inside one.

    Raises:
        UsageError: no folder is there, a run, or a stage that leaves no model.
        ArtifactError: no finished stage left it, or its files are damaged.
    """
    path = expand(given)
    if not path.is_dir():
        raise UsageError(f"{given}: no such folder; name that of a stage, such as runs/mine/sft")
    artifact = _stage_around(path)
    if artifact is None:
        raise _no_stage(given, path)
    part = path.resolve().relative_to(artifact.folder.resolve()).as_posix()
    models = _models(artifact)
    if part == ".":
        part = "model"
    if part not in models:
        way_out = f"name one of its models: {', '.join(models)}" if models else "name another stage"
        raise UsageError(
            f"{given}: stage {artifact.name} ({artifact.kind}) leaves no model there; {way_out}"
        )
    verify(artifact)
    run = artifact.folder.parent
    planner = load_run(run) if (run / RESOLVED).is_file() else None
    if planner is not None and artifact.folder.name not in planner.recipe.stages:
        planner = None
    return Subject(artifact, part, planner)


def _stage_around(path: Path) -> Artifact | None:
    place = path.resolve()
    for folder in (place, *list(place.parents)[:_DEEP]):
        artifact = find(folder)
        if artifact is not None:
            # As it was named where that says the same: sentences then name what the user typed.
            return Artifact(path, artifact.manifest) if folder == place else artifact
    return None


def _models(artifact: Artifact) -> list[str]:
    parts = (name.rpartition("/") for name in artifact.manifest["files"])
    return [folder for folder, _, name in parts if folder and name in _MODEL]


def _no_stage(given: str, path: Path) -> RlhfError:
    """Return the error of a folder that no finished stage left."""
    if (path / RESOLVED).is_file():
        planner = load_run(path)
        left = [name for name, found in planner.artifacts().items() if _models(found)]
        which = f"name one of its stages: {', '.join(left)}" if left else "none of its stages is"
        return UsageError(f"{given} is a run; {which}{'' if left else ' done that leaves a model'}")
    run = path.resolve().parent
    if (run / RESOLVED).is_file() and path.resolve().name in load_run(run).recipe.stages:
        state = unfinished_state(run, path.resolve().name, holder(run))
        return ArtifactError(
            f"{given}: the stage is not done ({state}); run its recipe to the end, then publish"
        )
    return ArtifactError(
        f"{given} holds no manifest.json, so that nothing is known of how "
        "it was made; name the folder of a finished stage, such as runs/mine/sft"
    )
