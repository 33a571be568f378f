"""How the stages of a run stand: done, outdated, damaged, running, cut off, or not run."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from data.errors import ArtifactError, StorageError, one_line
from data.storage import open_file
from pipeline.contract.stage_log import progress_of
from pipeline.run.planning import Planner
from pipeline.run.unfinished import attempt_in

LOCK = ".lock"
"""In a run folder: held by the process that works in it, and names it."""
DAMAGED = "damaged: "
"""How the state of a stage begins whose artifact can't be used; behind it stands why."""
_LONGEST = 1000
"""Characters of a lock that are read."""


def lock_text(stage: str | None = None) -> str:
    """Return what the holder of `LOCK`, at work on a stage, writes into it."""
    return f"process {os.getpid()}{f', at stage {stage}' if stage is not None else ''}"


def holder(run: Path) -> tuple[str, str] | None:
    """Return which process works in a run folder, and on which stage; None where none does.

    A process that was killed leaves its name in the file, but no lock.
    """
    try:
        with open(run / LOCK, encoding="utf-8", errors="replace", opener=open_file) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                named = re.match(r"process (\d+)(?:, at stage (.+))?", file.read(_LONGEST))
                return (named[1], named[2] or "") if named else ("?", "")
    except (OSError, StorageError):
        # Another user's run, or none that was ever started.
        return None
    return None


def unfinished_state(run: Path, stage: str, held: tuple[str, str] | None) -> str:
    """Tell how a stage without an artifact stands.

    Args:
        run: the run folder.
        stage: the stage's name.
        held: what `holder` returned.
    """
    if held is not None and held[1] == stage:
        return f"running, {_so_far(run, stage)}process {held[0]}"
    folder = run / stage
    attempt = attempt_in(folder)
    if attempt is not None and attempt.step is not None:
        return f"cut off, resumes at step {attempt.step}"
    return "not finished" if folder.is_dir() and os.listdir(folder) else "not run"


def _so_far(run: Path, stage: str) -> str:
    found = progress_of(stage, run / stage / "stage.log")
    if found is None:
        return ""
    count, left = found
    return f"{count}, " if left is None else f"{count}, {in_units(left)} left, "


def in_units(seconds: float) -> str:
    """Return a time in its largest unit, 40 s or 3 h."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def standing(planner: Planner, stage: str, held: tuple[str, str] | None = None) -> str | None:
    """Tell how a stage stands that is not done; None for one that is.

    The stages after it are judged by that, so they are asked for in the recipe's order.

    Args:
        planner: of the recipe as it is now.
        stage: the stage's name.
        held: what `holder` returned.
    """
    try:
        if planner.verified(stage) is None:
            planner.stale.add(stage)
            return unfinished_state(planner.folder, stage, held)
    except ArtifactError as error:
        planner.stale.add(stage)
        return DAMAGED + one_line(str(error))
    reason = planner.why_outdated(stage)
    return None if reason is None else f"outdated: {reason}"


def not_done(planner: Planner, held: tuple[str, str] | None = None) -> dict[str, str]:
    """Return how each stage stands that is not done, in the recipe's order.

    Args:
        planner: of the recipe as it is now.
        held: what `holder` returned.
    """
    # Of what was planned nothing runs any more: what is there is judged as it is.
    planner.stale.clear()
    states = {stage: standing(planner, stage, held) for stage in planner.recipe.stages}
    return {stage: state for stage, state in states.items() if state is not None}
