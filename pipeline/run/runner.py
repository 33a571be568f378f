"""Orders the stages, skips what is done, resumes what was cut off, runs the rest."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import ArtifactError, Interrupted, RlhfError, RunLockedError
from data.storage import storage_errors, write_atomically
from pipeline.contract.artifacts import Artifact, find, require_writable_place, verify
from pipeline.contract.console import Console
from pipeline.contract.settings import LaunchSettings
from pipeline.contract.stop import StopFlag
from pipeline.recipe.files import read_merged
from pipeline.recipe.load import Recipe
from pipeline.run.checking import check_stages
from pipeline.run.execution import run_stage
from pipeline.run.planning import Planner, Selection, Step, key_digest
from pipeline.run.standing import LOCK, lock_text, not_done
from pipeline.run.unfinished import Attempt
from pipeline.run.worker_lifetime import await_orphans

RESOLVED = "recipe.yaml"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Raises:
        RunLockedError: another process holds it.
        StorageError: the folder can't be made.
    """
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunLockedError(
                f"{run} is in use by {holder}; wait for it, stop it, or choose another folder "
                "with --out"
            ) from None
        with storage_errors(run / LOCK):
            file.truncate(0)
            file.write(lock_text())
            file.flush()
        yield


def plan(
    recipe: Recipe, run: Path, selection: Selection, launch: LaunchSettings | None = None
) -> list[Step]:
    """Return what `execute` would do, having checked all hand-overs.

    Raises:
        RlhfError: a hand-over, a source or an artifact is wrong.
    """
    require_writable_place(run)
    require_same_recipe(recipe, run)
    planner = Planner(recipe, run, selection)
    steps = planner.plan()
    check_stages(recipe, planner, launch)
    for step in steps:
        if step.action in ("up to date", "not selected"):
            artifact = find(run / step.stage)
            if artifact is not None and step.reason:
                verify(artifact)
    return steps


def require_same_recipe(recipe: Recipe, run: Path) -> None:
    """Refuse a run folder that belongs to a recipe of another name.

    Raises:
        ArtifactError: it does.
    """
    path = run / RESOLVED
    if not path.is_file():
        return
    # The name alone: an older version's recipe may hold settings that are no more.
    owner = read_merged(path)[0].get("name")
    if owner != recipe.name:
        raise ArtifactError(
            f"{run} holds a run of the recipe '{owner}', not of '{recipe.name}'; choose another "
            "folder with --out"
        )


def execute(
    recipe: Recipe,
    run: Path,
    *,
    selection: Selection | None = None,
    launch: LaunchSettings | None = None,
    console: Console | None = None,
) -> dict[str, Artifact]:
    """Run a recipe in a run folder.

    Args:
        recipe: the recipe.
        run: the run folder.
        selection: which stages; all when not given.
        launch: number of processes; the recipe's when not given.
        console: where it speaks.

    Returns:
        The artifact of every stage that has one.

    Raises:
        Interrupted: a signal asked to stop; what was done is saved.
        RlhfError: a stage failed or something does not fit.
    """
    selection = selection or Selection()
    console = console or Console()
    stop = StopFlag()
    with locked(run), stop.installed():
        await_orphans(run)
        steps = plan(recipe, run, selection, launch)
        write_atomically(run / RESOLVED, recipe.to_yaml())
        try:
            for step in steps:
                if stop.asked:
                    raise Interrupted("stopped between two stages")
                _do(recipe, run, step, selection, launch or recipe.top.launch, console, stop)
        except (Interrupted, RlhfError):
            _report_after_stop(recipe, run, console)
            raise
        found = {name: find(run / name) for name in recipe.stages}
        _report(recipe, run, console)
        return {name: artifact for name, artifact in found.items() if artifact is not None}


def _do(
    recipe: Recipe,
    run: Path,
    step: Step,
    selection: Selection,
    launch: LaunchSettings,
    console: Console,
    stop: StopFlag,
) -> None:
    """Carry out one step."""
    if step.action == "not selected":
        return
    # A parent that ran may have given the same content as before; then this stage is up to date.
    planner = Planner(recipe, run, selection)
    if step.action != "up to date":
        step = planner.step(step.stage)
    if step.action == "up to date":
        console.say(f"{step.stage}: up to date")
        return
    key = planner.key(step.stage)
    console.begin(f"{step.stage} ({recipe.stages[step.stage].kind}): {step.reason}")
    with storage_errors(run):
        (run / LOCK).write_text(lock_text(step.stage), encoding="utf-8")
    _mark_report(run, step.stage)
    started = time.monotonic()
    attempt = planner.attempt(step.stage, key)
    with _saying_what_is_kept(attempt):
        artifact = run_stage(
            recipe, step.stage, run, key=key, digest=key_digest(key), attempt=attempt,
            launch=launch, console=console, stop=stop, anew=selection.force,
        )  # fmt: skip
    metric = artifact.manifest["main_metric"]
    value = artifact.metrics.get(metric)
    shown = f", {metric} {value:.4g}" if isinstance(value, (int, float)) else ""
    console.say(f"{step.stage}: done in {time.monotonic() - started:.1f} s{shown}")


@contextmanager
def _saying_what_is_kept(attempt: Attempt) -> Iterator[None]:
    """Add to the word that a stage was stopped which checkpoint of it is there."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; {_kept(attempt)}") from stopped
    except KeyboardInterrupt as stopped:
        told = f"stage {attempt.folder.name} was stopped at once; {_kept(attempt)}"
        raise KeyboardInterrupt(told) from stopped


def _kept(attempt: Attempt) -> str:
    if attempt.step is None:
        return "there is no checkpoint of it yet"
    return f"its last whole checkpoint is of step {attempt.step}"


def _mark_report(run: Path, stage: str) -> None:
    """Say in a report of before that a stage runs anew, for whoever reads it until it is written.

    Also for the one who reads it later: a killed run writes none.
    """
    from pipeline.evaluation.report.report import mark_report

    mark_report(
        run,
        f"Stage {stage} was begun after this report was made, and no report was made since: what "
        "stands here is older. The next `rlhf run` that ends makes a new one.",
    )


def _report(recipe: Recipe, run: Path, console: Console) -> None:
    """Write the report of what is there, if it is not the one that is there."""
    from pipeline.evaluation.report.report import is_current, write_report

    found = {name: find(run / name) for name in recipe.stages}
    artifacts = {name: artifact for name, artifact in found.items() if artifact is not None}
    if not artifacts and not (run / "report").is_dir():
        return
    states = not_done(recipe, run, artifacts)
    if not is_current(run, artifacts, states):
        console.say(f"report: {write_report(run, recipe.name, artifacts, states)}")


def _report_after_stop(recipe: Recipe, run: Path, console: Console) -> None:
    """Write the report of what is there; why it can't be must not hide why the run stopped."""
    try:
        _report(recipe, run, console)
    except (RlhfError, OSError) as error:
        console.say(f"no report was made: {error}")
