"""The same prompts answered by every checkpoint, for the console."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.json_lines import read_json_lines
from pipeline.evaluation.report.view import prompt_text, sample_groups

COUNT = 6
LONGEST = 180
"""Characters of an answer that are shown."""


def answers_table(
    folder: Path, *, count: int = COUNT, seed: int = 0, terminal: bool | None = None
) -> str:
    """Return some prompts of an evaluation, drawn by the seed, with each checkpoint's answer.

    A table with colours for a terminal, plain lines elsewhere.

    Raises:
        ArtifactError: there are no samples.
    """
    groups = sample_groups([*read_json_lines(folder / "samples.jsonl")], seed=seed, count=count)
    terminal = sys.stdout.isatty() if terminal is None else terminal
    return _table(groups) if terminal else _lines(groups)


def _table(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as wide as the terminal, with its colours."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [answer["checkpoint"] for answer in groups[0]["answers"]] if groups else []
    table = Table(box=box.SIMPLE_HEAD, show_lines=False, padding=(0, 1, 1, 0), expand=True)
    table.add_column("prompt", ratio=3, style="bold")
    for name in names:
        table.add_column(Text(name), ratio=4)
    for group in groups:
        # Text, not markup: what a model wrote must not be read as a style.
        cells = [Text(_short(prompt_text(group["prompt"])))]
        table.add_row(*cells, *(_cell(answer) for answer in group["answers"]))
    width = min(shutil.get_terminal_size().columns, 160)
    console = Console(width=width, force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _cell(answer: Mapping[str, Any]) -> Any:
    from rich.text import Text

    text = Text(_short(answer["response"]) or "(nothing)")
    judged = _judged(answer)
    return text.append(f"\n{judged}", style="dim") if judged else text


def _lines(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return plain lines, no wider than 100 characters."""
    lines: list[str] = []
    for group in groups:
        lines += ["", *textwrap.wrap(_short(prompt_text(group["prompt"])), 100)]
        for answer in group["answers"]:
            judged = _judged(answer)
            response = _short(answer["response"]) or "(nothing)"
            opening = f"  {answer['checkpoint']:>6}{f' [{judged}]' if judged else ''}: "
            lines += textwrap.wrap(
                response, 100, initial_indent=opening, subsequent_indent=" " * 10
            )
    return "\n".join([*lines, ""])


def _judged(answer: Mapping[str, Any]) -> str:
    """Return the answer's score by gold, else by proxy, "" without a judge."""
    judge = "gold" if answer["gold"] is not None else "proxy"
    return "" if answer[judge] is None else f"{judge} {answer[judge]:.2f}"


def _short(text: str) -> str:
    """Return a text on one line, cut where it is long, without control characters."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.shorten(plain, LONGEST, placeholder=" ...")
