"""Orders the stages, skips what is done, resumes what was cut off, runs the rest."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from data.errors import ArtifactError, Interrupted, RlhfError, RunLockedError
from data.storage import open_file, storage_errors, write_atomically
from pipeline.contract.artifacts import Artifact, require_writable_place
from pipeline.contract.console import Console
from pipeline.contract.settings import LaunchSettings
from pipeline.contract.stop import StopFlag
from pipeline.recipe.files import read_merged
from pipeline.recipe.load import Recipe
from pipeline.run.checking import check_stages
from pipeline.run.execution import Run, run_stage
from pipeline.run.planning import Planner, Selection, Step
from pipeline.run.standing import DAMAGED, LOCK, holder, lock_text, not_done
from pipeline.run.unfinished import Attempt, take_over
from pipeline.run.worker_lifetime import await_orphans

RESOLVED = "recipe.yaml"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Raises:
        RunLockedError: another process holds it.
        StorageError: the folder can't be made.
    """
    require_writable_place(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8", opener=open_file)  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process, stage = holder(folder) or ("?", "")
            at = f", at stage {stage}" if stage else ""
            raise RunLockedError(
                f"{folder} is in use by process {process}{at}; wait for it, stop it, or choose "
                "another folder with --out"
            ) from None
        with storage_errors(folder / LOCK):
            file.truncate(0)
            # Past the buffer: what is left in one is written again as the file is closed.
            os.write(file.fileno(), lock_text().encode())
        yield


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
        artifacts: what each stage left that has finished, now or before.
        not_done: how each stage stands whose artifact is missing or outdated.
    """

    artifacts: dict[str, Artifact]
    not_done: dict[str, str]


def plan(planner: Planner, launch: LaunchSettings | None = None) -> list[Step]:
    """Return what `execute` would do, having checked all hand-overs.

    Raises:
        RlhfError: a hand-over, a source or an artifact is wrong.
    """
    require_writable_place(planner.folder)
    require_same_recipe(planner.recipe, planner.folder)
    steps = planner.plan()
    check_stages(planner, launch)
    for step in steps:
        if step.action in ("up to date", "reuse", "not selected") and step.reason:
            planner.verified(step.stage)
    return steps


def require_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Refuse a run folder that belongs to a recipe of another name.

    Raises:
        ArtifactError: it does.
    """
    path = folder / RESOLVED
    if not path.is_file():
        return
    # The name alone: an older version's recipe may hold settings that are no more.
    owner = read_merged(path)[0].get("name")
    if owner != recipe.name:
        raise ArtifactError(
            f"{folder} holds a run of the recipe '{owner}', not of '{recipe.name}'; choose another "
            "folder with --out"
        )


def execute(
    recipe: Recipe,
    folder: Path,
    *,
    selection: Selection | None = None,
    reuse: Sequence[Path] = (),
    launch: LaunchSettings | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> Outcome:
    """Run a recipe in a run folder.

    Args:
        recipe: the recipe.
        folder: the run folder.
        selection: which stages; all when not given.
        reuse: folders of other runs, whose stages of equal keys are taken over.
        launch: number of processes; the recipe's when not given.
        console: where it speaks.
        stop: what a signal sets.

    Raises:
        Interrupted: a signal asked to stop; what was done is saved.
        RlhfError: a stage failed or something does not fit.
    """
    console, stop = console or Console(), stop or StopFlag()
    run = Run(recipe, folder, launch or recipe.top.launch, console, stop)
    planner = Planner(recipe, folder, selection, reuse)
    with locked(folder), run.stop.installed():
        await_orphans(folder)
        steps = plan(planner, run.launch)
        write_atomically(folder / RESOLVED, recipe.to_yaml())
        for step in steps:  # before others run, since nothing they leave is what these follow from
            _take_over(run, planner, step)
        try:
            for step in steps:
                if run.stop.asked:
                    raise Interrupted("stopped between two stages")
                _carry_out(run, planner, planner.at_its_turn(step))
        except (Interrupted, RlhfError):
            _report_after_stop(run, planner)
            raise
        outcome = _outcome(planner)
        _report(run, outcome)
        return outcome


def _carry_out(run: Run, planner: Planner, step: Step) -> None:
    """Do what was decided of a stage whose turn has come."""
    if step.action == "up to date":
        run.console.say(f"{step.stage}: up to date")
    _take_over(run, planner, step)
    if step.key is None or step.action not in ("run", "resume"):
        return
    run.console.begin(f"{step.stage} ({run.recipe.stages[step.stage].kind}): {step.reason}")
    with (
        storage_errors(run.folder),
        open(run.folder / LOCK, "w", encoding="utf-8", opener=open_file) as lock,
    ):
        lock.write(lock_text(step.stage))
    _mark_report(run.folder, step.stage)
    started = time.monotonic()
    attempt = planner.attempt(step.stage, step.key)
    try:
        with _saying_what_is_kept(attempt):
            artifact = run_stage(run, attempt, step.key, anew=planner.force)
    finally:
        planner.look_again()
    metric = artifact.manifest["main_metric"]
    value = artifact.metrics.get(metric)
    shown = f", {metric} {value:.4g}" if isinstance(value, (int, float)) else ""
    run.console.say(f"{step.stage}: done in {time.monotonic() - started:.1f} s{shown}")


def _take_over(run: Run, planner: Planner, step: Step) -> None:
    """Take a finished stage over from another run, if that was decided and is not done."""
    if step.action != "reuse" or step.stage not in planner.taken or step.key is None:
        return
    artifact = planner.verified(step.stage)
    assert artifact is not None, f"{step.stage} was found to be finished"
    take_over(artifact, planner.attempt(step.stage, step.key), keep=run.recipe.path)
    del planner.taken[step.stage]
    planner.look_again()
    run.console.say(f"{step.stage}: {step.reason}")


@contextmanager
def _saying_what_is_kept(attempt: Attempt) -> Iterator[None]:
    """Add to the word that a stage was stopped which checkpoint of it is there."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; {_kept(attempt)}") from stopped
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            f"stage {attempt.stage} was stopped at once; {_kept(attempt)}"
        ) from stopped


def _kept(attempt: Attempt) -> str:
    if attempt.step is None:
        return "there is no checkpoint of it yet"
    return f"its last whole checkpoint is of step {attempt.step}"


def _mark_report(folder: Path, stage: str) -> None:
    """Say in a report of before that a stage runs anew, for whoever reads it until it is written.

    Also for the one who reads it later: a killed run writes none.
    """
    from pipeline.evaluation.report.report import mark_report

    mark_report(
        folder,
        f"Stage {stage} was begun after this report was made, and no report was made since: what "
        "stands here is older. The next `rlhf run` that ends makes a new one.",
    )


def _outcome(planner: Planner, held: tuple[str, str] | None = None) -> Outcome:
    states = not_done(planner, held)
    undamaged = [s for s in planner.recipe.stages if not states.get(s, "").startswith(DAMAGED)]
    left = {stage: planner.artifact(stage) for stage in undamaged}
    return Outcome({stage: a for stage, a in left.items() if a is not None}, states)


def _report(run: Run, outcome: Outcome) -> None:
    """Write the report of what is there, if it is not the one that is there."""
    from pipeline.evaluation.report.report import is_current, write_report

    if not outcome.artifacts and not (run.folder / "report").is_dir():
        return
    if not is_current(run.folder, *outcome):
        run.console.say(f"report: {write_report(run.folder, run.recipe.name, *outcome)}")


def renew_report(planner: Planner, *, at_work: bool = False) -> Path:
    """Write the report of a run anew, of what is there; return its page.

    Args:
        planner: of the run.
        at_work: also while a process works in it; its report else stays as it is.

    Raises:
        ArtifactError: there is nothing to report.
    """
    from pipeline.evaluation.report.report import write_report

    page = planner.folder / "report" / "index.html"
    held = holder(planner.folder)
    if held is not None and page.is_file() and not at_work:
        return page
    outcome = _outcome(planner, held if at_work else None)
    if not outcome.artifacts:
        raise ArtifactError(f"{planner.folder} has no finished stage to report; run it first")
    return write_report(planner.folder, planner.recipe.name, *outcome)


def _report_after_stop(run: Run, planner: Planner) -> None:
    """Write the report of what is there; why it can't be must not hide why the run stopped."""
    try:
        _report(run, _outcome(planner))
    except (RlhfError, OSError) as error:
        run.console.say(f"no report was made: {error}")
