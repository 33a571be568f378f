"""What becomes of the processes of a stage when the one that waits for them is killed.

SIGKILL can't be passed on, and `accelerate launch` starts each process in a session of its own. So
each of them looks by itself whether `rlhf run` is still there, and ends when it is not; and the
next `rlhf run` begins only once all are gone, since two of them would write the same resume state.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from data.errors import RunLockedError
from data.storage import open_file, storage_errors

STARTER = "RLHF_STARTER"
"""In the environment of a stage's processes: which `rlhf run` waits for them."""
LOCK = ".processes.lock"
_EVERY = 0.2
_SAME_MOMENT = 1.0
"""Seconds; a correction of the clock moves what the system tells of a process's beginning."""


def starter() -> str:
    """Return what names this process to those it starts, see `STARTER`."""
    return f"{os.getpid()} {psutil.Process().create_time()}"


@contextmanager
def ends_with_starter(run: Path) -> Iterator[None]:
    """End this process at once when its starter is gone; until then mark the run as in use.

    Does nothing without `STARTER`, as on the other machines of a launch.

    Args:
        run: the run folder.
    """
    named = os.environ.get(STARTER)
    if named is None:
        yield
        return
    launcher = os.getppid()
    with storage_errors(run), open(run / LOCK, "a", opener=open_file) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        # Looked at under the lock: a later `rlhf run` has either waited for us, or finds us gone.
        process = _starter(named)
        _end_if_alone(process, launcher)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_EVERY):
                _end_if_alone(process, launcher)

        threading.Thread(target=watch, name="starter", daemon=True).start()
        try:
            yield
        finally:
            done.set()


def await_orphans(run: Path, *, seconds: float = 60.0) -> None:
    """Wait until the processes of an earlier, killed `rlhf run` are gone.

    Args:
        run: the run folder, locked by this process.
        seconds: how long.

    Raises:
        RunLockedError: they still work.
    """
    until = time.monotonic() + seconds
    with storage_errors(run), open(run / LOCK, "a", opener=open_file) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise RunLockedError(
                        f"{run} is in use by processes of an `rlhf run` that was killed; end them, "
                        "or choose another folder with --out"
                    ) from None
                time.sleep(0.05)


def _starter(named: str) -> psutil.Process | None:
    """Return the process that `starter` named, None when it is gone."""
    number, _, born = named.partition(" ")
    try:
        process = psutil.Process(int(number))
        same = abs(process.create_time() - float(born)) < _SAME_MOMENT
    except psutil.NoSuchProcess:
        return None
    return process if same else None  # else its number was given out again


def _end_if_alone(process: psutil.Process | None, launcher: int) -> None:
    try:
        alone = (
            process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        alone = True
    if alone or os.getppid() != launcher:
        # No exception would do: this may run beside a collective that never returns.
        os._exit(1)
