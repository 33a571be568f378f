"""`rlhf watch`: a run on the terminal, refreshed while it works."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.run.watching import Look

_REPORT_SECONDS = 30.0
_WIDE = 100
"""Columns of a terminal that has room for all that is told of a stage."""
_FIRST = 3
"""What is told of a stage where there is less: its name, kind and state."""


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    every: Annotated[
        float, typer.Option(min=0.1, max=86400, help="Seconds between two looks.")
    ] = 2.0,
    html: Annotated[
        bool, typer.Option("--html", help="Write its report twice a minute, too.")
    ] = False,
) -> None:
    """Show a run while it works: stages, rate, time left, figures, alarms, samples."""
    from rich.live import Live

    from pipeline.run.watching import look

    now, written = look(run), -_REPORT_SECONDS
    if not sys.stdout.isatty():
        typer.echo("\n".join(_lines(now)))
        if html:
            _write_report(run)
        return
    with Live(_page(now), auto_refresh=False) as live:
        while now.stage is not None:
            if html and time.monotonic() - written >= _REPORT_SECONDS:
                _write_report(run)
                written = time.monotonic()
            time.sleep(every)
            now = look(run)
            live.update(_page(now), refresh=True)
    if html:
        _write_report(run)


def _write_report(run: Path) -> None:
    """Write the report of what has finished; there may be nothing yet."""
    from pipeline.run.listing import load_run
    from pipeline.run.runner import renew_report

    planner = load_run(run)
    if planner.artifacts():
        renew_report(planner, at_work=True)


def _page(now: Look) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from pipeline.run.listing import COLUMNS

    shown = len(COLUMNS) if shutil.get_terminal_size().columns >= _WIDE else _FIRST
    table = Table(*COLUMNS[:shown], box=None, header_style="bold")
    for row in now.rows:
        table.add_row(*map(Text, row[:shown]), style="bold" if row[0] == now.stage else None)
    return Group(table, *map(Text, _told(now)))


def _lines(now: Look) -> list[str]:
    return ["\t".join(row[:_FIRST]) for row in now.rows] + [*_told(now)]


def _told(now: Look) -> Iterator[str]:
    """Yield in words what the stage at work has logged last."""
    from data.errors import one_line
    from pipeline.evaluation.report.view import number, prompt_text

    if now.stage is None:
        yield "\nno process works in it"
        return
    if now.figures:
        yield "\n" + ", ".join(f"{name} {number(value)}" for name, value in now.figures.items())
    for alarm in now.alarms:
        yield f"alarm at {one_line(alarm)}"
    for sample in now.samples:
        score = sample.get("score")
        told = "" if score is None else f" ({number(score)})"
        yield f"\n> {one_line(prompt_text(sample['prompt']))[:200]}"
        yield f"  {one_line(sample['response'])[:400]}{told}"
