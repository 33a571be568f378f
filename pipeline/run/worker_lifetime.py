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

from data.errors import RunLockedError
from data.storage import storage_errors

STARTER = "RLHF_STARTER"
"""In the environment of a stage's processes: which `rlhf run` waits for them."""
LOCK = ".processes.lock"
_EVERY = 0.2


def starter() -> str:
    """Return what names this process to those it starts, see `STARTER`."""
    return f"{os.getpid()} {_born(os.getpid())}"


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
    with storage_errors(run), (run / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        # Looked at under the lock: a later `rlhf run` has either waited for us, or finds us gone.
        _end_if_alone(named, launcher)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_EVERY):
                _end_if_alone(named, launcher)

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
    with storage_errors(run), (run / LOCK).open("a") as file:
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


def _end_if_alone(named: str, launcher: int) -> None:
    number, _, born = named.partition(" ")
    if os.getppid() != launcher or _born(int(number)) != born:
        # No exception would do: this may run beside a collective that never returns.
        os._exit(1)


def _born(number: int) -> str:
    """Return when a process began, "" if there is none; a number alone may be given out again."""
    try:
        line = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return ""
        return "running"
    fields = line.rpartition(")")[2].split()  # a name may hold blanks: from the third one on
    return "" if fields[0] in "ZX" else fields[19]
