"""`rlhf ls RUN`: the stages of a run with state, age, size, parents and main metric."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from data.errors import ArtifactError, RecipeError, UsageError
from pipeline.contract.artifacts import Artifact
from pipeline.contract.settings import external_location, is_external
from pipeline.recipe.load import load_recipe
from pipeline.run.planning import Planner
from pipeline.run.runner import RESOLVED
from pipeline.run.standing import DAMAGED, holder, in_units, standing
from pipeline.stages.evaluate.settings import EvaluateSettings

COLUMNS = ("stage", "kind", "state", "age", "size", "parents", "metric")


def run_folder(run: Path) -> Path:
    """Return a run's folder.

    Raises:
        ArtifactError: the folder is no run.
    """
    if not (run / RESOLVED).is_file():
        why = f"it has no {RESOLVED}" if run.is_dir() else "no such folder"
        raise ArtifactError(f"{run} is no run folder: {why}; name runs/<recipe>")
    return run


def load_run(run: Path) -> Planner:
    """Return the planner of a run, by the recipe that it was started with.

    Raises:
        ArtifactError: the folder is no run.
    """
    path = run_folder(run) / RESOLVED
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        raise ArtifactError(
            f"{run} holds a run of another version of this program, or its {RESOLVED} was edited "
            f"({str(error).splitlines()[0]}); run the recipe again with --out {run}, or list it "
            "with the version that made it"
        ) from error
    return Planner(recipe, run)


def list_run(run: Path) -> list[tuple[str, ...]]:
    """Return a row of text for every stage of a run, under `COLUMNS`.

    Raises:
        ArtifactError: the folder is no run.
    """
    planner, held = load_run(run), holder(run)
    return [_row(planner, stage, held) for stage in planner.recipe.stages]


def evaluation_in(place: str) -> Path | None:
    """Return the folder of the last finished evaluation of a run; of an evaluation its own."""
    folder = Path(place)
    if not (folder / RESOLVED).is_file():
        return folder if (folder / "evaluation.json").is_file() else None
    planner = load_run(folder)
    finished = [
        folder / stage
        for stage, settings in planner.recipe.stages.items()
        if settings.kind == "evaluate" and planner.verified(stage) is not None
    ]
    return finished[-1] if finished else None


def last_policy(place: str) -> str:
    """Return the stage of the policy that a run evaluates last; a checkpoint as it is named.

    Raises:
        UsageError: the run evaluates none.
    """
    folder = Path(place)
    if not (folder / RESOLVED).is_file():
        return place
    last = None
    for settings in load_run(folder).recipe.stages.values():
        if isinstance(settings, EvaluateSettings):
            last = [*settings.checkpoints.values()][-1]
    if last is None:
        raise UsageError(f"{place} evaluates no checkpoint; name a stage's folder, {place}/sft")
    where = external_location(last) if is_external(last) else str(folder / last)
    return f"{folder.resolve().name}={where}"


def _row(planner: Planner, stage: str, held: tuple[str, str] | None) -> tuple[str, ...]:
    parents = ", ".join(planner.recipe.parents(stage)) or "-"
    kind = planner.recipe.stages[stage].kind
    state = standing(planner, stage, held) or "done"
    artifact = None if state.startswith(DAMAGED) else planner.artifact(stage)
    if artifact is None:
        return (stage, kind, state, "-", "-", parents, "-")
    return (stage, kind, state, _age(artifact), _size(artifact.size), parents, _metric(artifact))


def _metric(artifact: Artifact) -> str:
    name = artifact.manifest.get("main_metric", "")
    value = artifact.metrics.get(name)
    if value is None:
        return "-"
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _age(artifact: Artifact) -> str:
    created = artifact.manifest.get("created")
    if created is None:
        return "-"
    return in_units((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
