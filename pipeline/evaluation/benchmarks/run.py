"""Asks tasks of checkpoints and keeps the rows of each, so that what was cut off goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.registry import BENCHMARKS
from pipeline.evaluation.benchmarks.settings import TaskSettings

TASKS = "tasks.jsonl"
LOOKED_AT = 20
"""Rows of a file that are read to tell beforehand whether it can be."""


def task_rows(
    tasks: Sequence[TaskSettings],
    subjects: Mapping[str, Callable[[], Subject]],
    *,
    kept: Callable[[str, TaskSettings, Callable[[], Any]], Any],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return the rows of all tasks and checkpoints, as `tasks.jsonl` holds them.

    Args:
        tasks: what is asked.
        subjects: by name what loads each checkpoint; called where it is asked anything.
        kept: returns what is kept of a checkpoint's task, else makes and keeps it.
        say: takes a line for the reader.

    Raises:
        SourceError: what a task asks can't be read.
    """
    prepared = {task.called: BENCHMARKS[task.kind].prepare(task, say) for task in tasks}
    rows: list[dict[str, Any]] = []
    for name, load in subjects.items():
        loaded = cache(load)
        for task in tasks:
            asked = partial(_ask, task, prepared[task.called], loaded)
            for row in kept(name, task, asked):
                rows.append({"checkpoint": name, "task": task.called, "kind": task.kind, **row})
    return rows


def _ask(task: TaskSettings, prepared: Any, load: Callable[[], Subject]) -> list[dict[str, Any]]:
    subject = load()
    rows = [dict(row) for row in BENCHMARKS[task.kind].ask(task, prepared, subject)]
    if rows and rows[0]["first_tokens"]["bos_twice"]:
        subject.say(
            f"  {subject.name}: {task.called}: prompts begin with two bos tokens; its template "
            "writes one, and its tokenizer adds another"
        )
    return rows


def check_tasks(tasks: Sequence[TaskSettings]) -> None:
    """Read the first rows of what tasks ask, as far as it is on this machine.

    Raises:
        SourceError: it can't be read.
        UsageError: a package is missing.
    """
    for task in tasks:
        if all(source.hub is None or Path(source.hub).is_dir() for source in task.sources):
            BENCHMARKS[task.kind].prepare(task, lambda line: None, LOOKED_AT)
