"""The flag that a signal sets, and that loops look at after each step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from data.errors import Interrupted

STOPPING = "rlhf: stopping as soon as the step at work is done; once more stops at once"


@dataclass
class StopFlag:
    """Set by SIGINT or SIGTERM; training loops look at it after each step.

    Attributes:
        signum: the signal that came.
        file: a file that says the same, to a process that another one started.
        tells: whether a signal is answered at once, on stderr.
        waits: whether a stage may wait for people; else it stops where it would.
    """

    signum: int | None = None
    file: Path | None = None
    tells: bool = True
    waits: bool = True

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self.signum is not None or (self.file is not None and self.file.exists())

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Handle both signals while the block runs; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_asked(self) -> None:
        """Raise `Interrupted` when a signal asked to stop."""
        if self.asked:
            raise Interrupted("asked to stop; the same command goes on there")

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        if self.tells:
            # Not by print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{STOPPING}\n".encode())
