"""The log of a stage, `stage.log`: what it said, what libraries warned of, how it failed.

Every line has its time and is on the disk's way at once. A stage that goes on writes behind what is
there. Of many processes the main one writes, and what fails on another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from data.errors import StorageError
from data.storage import open_file, storage_errors
from pipeline.contract.console import Console, counted_in

_OWN = ("transformers", "datasets", "huggingface_hub")
"""Libraries whose loggers keep their records from the root logger."""

_TAIL = 20_000
"""Bytes of a log's end in which its last progress is looked for."""


class _Timed(logging.Formatter):
    """Puts the time before every line of a record, and who said it where it was not the stage."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines."""
        who = "" if record.name == __name__ else f"{record.levelname} {record.name}: "
        time = self.formatTime(record)
        return "\n".join(f"{time} {who}{line}" for line in super().format(record).splitlines())


class _File(logging.FileHandler):
    """Appends records; says once when it can't any more, and lets the stage go on."""

    warned = False

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=open_file)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record through once, though several loggers hand it on."""
        seen = getattr(record, "in_stage_log", False)
        record.in_stage_log = True
        return not seen

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it; logging's own way is a traceback for every line."""
        if not self.warned:
            self.warned = True
            print(f"rlhf: {self.baseFilename} misses lines: {sys.exc_info()[1]}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Append what the stage says."""
        self.handle(logging.makeLogRecord({"name": __name__, "msg": text, "level": logging.INFO}))


@contextlib.contextmanager
def logged(log: Path, console: Console, *, errors_only: bool = False) -> Iterator[None]:
    """Send what a stage says and what libraries log to the stage's log.

    Args:
        log: the file; what is there stays.
        console: what it says goes there, too, also when it is quiet.
        errors_only: for processes that are not the main one.

    Raises:
        StorageError: the file can't be written.
    """
    with storage_errors(log):
        handler = _File(log, encoding="utf-8")
    handler.setFormatter(_Timed())
    loggers = [logging.getLogger(), *map(logging.getLogger, _OWN)]
    if errors_only:
        handler.setLevel(logging.ERROR)
    else:
        console.log = handler.note
    for logger in loggers:
        logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
        console.log = None
        handler.close()


def append(log: Path, text: str) -> None:
    """Append lines to a stage's log from outside of it.

    On a full disk what is said on the screen matters more than its copy here.
    """
    with contextlib.suppress(OSError):
        handler = _File(log, encoding="utf-8")
        handler.setFormatter(_Timed())
        handler.note(text)
        handler.close()


def progress_of(stage: str, log: Path) -> tuple[str, float | None] | None:
    """Return what a stage at work has counted last, as 12/30, and the seconds that were left.

    None where it has said nothing since it began; a stage says it every ten seconds.
    """
    with contextlib.suppress(OSError, StorageError), open(log, "rb", opener=open_file) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        for line in reversed(file.read().decode(errors="replace").splitlines()):
            if f" {stage} (" in line:
                return None
            if (found := counted_in(line)) is not None:
                return found
    return None
