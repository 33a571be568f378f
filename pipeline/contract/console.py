"""What a run says: rich progress bars on a terminal, plain lines elsewhere, little when quiet."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TextIO

PLAIN_SECONDS = 10.0
_COUNTED = re.compile(r".*  .+: (\d+(?:/\d+)?) .+?, [\d.]+/s(?:, ([\d:]+) left)?")
"""A line of progress, behind the time of a log."""


class Progress(Protocol):
    """A running count with rate and time left."""

    def advance(self, count: int = 1, **info: object) -> None:
        """Count `count` more; `info` is shown beside the bar, such as `loss=1.23`."""


class _Lines:
    """Progress as a plain line every ten seconds."""

    def __init__(
        self, label: str, total: int | None, done: int, unit: str, say: Callable[[str], None]
    ) -> None:
        self.say = say
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self.first, self.started = done, time.monotonic()
        self.last = self.started

    def advance(self, count: int = 1, **info: object) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < PLAIN_SECONDS:
            return
        self.last = now
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        left = ""
        if self.total is not None and rate > 0:
            left = f", {_clock((self.total - self.done) / rate)} left"
        of = f"/{self.total}" if self.total is not None else ""
        extra = f" {_info(info)}" if info else ""
        self.say(f"  {self.label}: {self.done}{of} {self.unit}, {rate:.1f}/s{left}{extra}")


class _Bar:
    """A bar for the screen, and lines for the log."""

    def __init__(self, bar: Any, task: Any, lines: _Lines) -> None:
        self.bar, self.task, self.lines = bar, task, lines

    def advance(self, count: int = 1, **info: object) -> None:
        self.lines.advance(count, **info)
        fields = {"info": _info(info)} if info else {}
        self.bar.update(self.task, advance=count, **fields)


def _info(info: dict[str, object]) -> str:
    return " ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in info.items()
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted_in(line: str) -> tuple[str, float | None] | None:
    """Return what a plain line of progress has counted, as 12/30, and the seconds left.

    >>> counted_in("  ppo: 12/30 updates, 0.3/s, 1:02 left score 0.5")
    ('12/30', 62.0)
    """
    found = _COUNTED.match(line)
    if found is None:
        return None
    left = 0.0
    for part in (found[2] or "").split(":"):
        left = 60 * left + float(part or 0)
    return found[1], left if found[2] else None


class Console:
    """Where a run tells what it does.

    Attributes:
        quiet: say nothing but errors and what a command was asked to print.
        beside: where progress is shown though the rest is quiet; None where it is a part of that.
        rank: rank of this process; only rank 0 speaks.
        log: takes every line, too, quiet or not; None outside of a stage.
        headline: what was said when the stage began.
    """

    def __init__(self, *, quiet: bool = False, rank: int = 0, beside: TextIO | None = None) -> None:
        self.quiet, self.beside = quiet or rank != 0, beside
        self.terminal = (beside or sys.stdout).isatty()
        self.log: Callable[[str], None] | None = None
        self.headline = ""

    def say(self, text: str) -> None:
        """Print one line."""
        self.note(text)
        if not self.quiet:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Write lines into the log alone."""
        if self.log is not None:
            self.log(text)

    def begin(self, text: str) -> None:
        """Print the line that a stage begins with."""
        self.headline = text
        self.say(text)

    @contextlib.contextmanager
    def progress(
        self, total: int | None, label: str, *, done: int = 0, unit: str = "steps"
    ) -> Iterator[Progress]:
        """Show progress while the block runs.

        Args:
            total: count at the end; None when unknown.
            label: what is counted.
            done: count at the start, for a resumed stage.
            unit: what one count is.
        """
        bars = self.terminal and not (self.quiet and self.beside is None)
        say = partial(print, file=self.beside, flush=True) if self.beside else self.say
        lines = _Lines(label, total, done, unit, self.note if bars else say)
        if not bars:
            yield lines
            return
        with _rich_bar(unit, self.beside) as bar:
            yield _Bar(bar, bar.add_task(label, total=total, completed=done, info=""), lines)


def _rich_bar(unit: str, stream: TextIO | None) -> Any:
    from rich import progress as rp
    from rich.console import Console as RichConsole
    from rich.text import Text

    class Rate(rp.ProgressColumn):
        def render(self, task: rp.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else "", style="progress.data.speed")

    return rp.Progress(
        rp.TextColumn("  {task.description}", markup=False),
        rp.BarColumn(bar_width=28),
        rp.MofNCompleteColumn(),
        Rate(),
        rp.TimeRemainingColumn(),
        rp.TextColumn("{task.fields[info]}", markup=False),
        console=RichConsole(file=stream) if stream else None,
    )
