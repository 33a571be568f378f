"""What a run is at, as its folder tells while it works: stages, last figures, alarms, samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import ArtifactError
from data.storage import open_file
from pipeline.evaluation.report.charts import stage_figures
from pipeline.run.listing import list_run, load_run
from pipeline.run.standing import holder

SAMPLES = 3
_TAIL = 200_000
"""Bytes of a log's end that are read."""


class Look(NamedTuple):
    """A run at a moment.

    Attributes:
        rows: of its stages, as `rlhf ls` has them.
        stage: that a process works on; None where none works in the run.
        figures: the last ones that the stage has logged, by their names on the report's page.
        alarms: of its doctor, the last first.
        samples: the last answers it has shown.
    """

    rows: list[tuple[str, ...]]
    stage: str | None
    figures: dict[str, float]
    alarms: list[str]
    samples: list[dict[str, Any]]


def look(run: Path) -> Look:
    """Return how a run stands now.

    Raises:
        ArtifactError: the folder is no run, or a log in it is damaged.
    """
    rows, held = list_run(run), holder(run)
    if held is None:
        return Look(rows, None, {}, [], [])
    stages, stage = load_run(run).recipe.stages, held[1]
    if stage not in stages:
        return Look(rows, stage, {}, [], [])
    logged, alarms, samples = (
        _last_rows(run / stage / name, *keys)
        for name, *keys in (
            ("metrics.jsonl",),
            ("doctor.jsonl", "update", "told"),
            ("samples.jsonl", "prompt", "response"),
        )
    )
    told = [f"update {row['update']}: {row['told']}" for row in alarms[: -SAMPLES - 1 : -1]]
    return Look(rows, stage, stage_figures(stages[stage].kind, logged), told, samples[-SAMPLES:])


def _last_rows(log: Path, *keys: str) -> list[dict[str, Any]]:
    """Return the whole rows at the end of a log that may be written to."""
    try:
        with open(log, "rb", opener=open_file) as file:
            skipped = max(0, file.seek(0, 2) - _TAIL)
            file.seek(skipped)
            *lines, _ = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    try:
        rows = [json.loads(line) for line in lines[bool(skipped) :]]
        whole = all(isinstance(row, dict) and row.keys() >= {*keys} for row in rows)
    except ValueError:
        whole = False
    if not whole:
        raise ArtifactError(f"{log} is damaged: a line of it is no row that a stage writes")
    return rows
