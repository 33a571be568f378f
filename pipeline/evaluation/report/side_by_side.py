"""Several runs on one page: their figures, what was set otherwise, their curves over each other.

Runs that differ by their seed have the mean of each figure and its interval over seeds. It writes
`report.json` and `index.html`, which holds its style and pictures as the report of a run does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import ArtifactError
from data.intervals import over_seeds
from data.json_lines import read_json_object
from data.storage import require_file_place, storage_errors, write_atomically
from pipeline.contract.artifacts import require_writable_place
from pipeline.evaluation.report import view
from pipeline.evaluation.report.charts import runs_charts
from pipeline.evaluation.report.collect import read_metrics
from pipeline.evaluation.report.report import PAGES, TEMPLATES, page_environment

Report = Mapping[str, Any]


class Figure(NamedTuple):
    """A figure of a run, with its interval over prompts where it has one."""

    name: str
    value: float
    ci95: Sequence[float] | None = None
    kind: str = "number"


def figures_of(report: Report) -> Iterator[Figure]:
    """Yield the figures of a run's report that several runs are compared by."""
    for rate in report["win_rates"]:
        name = f"{rate['a']} over {rate['b']}, by {rate['judge']}"
        yield Figure(name, rate["rate"], rate["ci95"], "percent")
        if rate["rate_length_controlled"] is not None:
            even, ends = rate["rate_length_controlled"], rate["ci95_length_controlled"]
            yield Figure(f"{name}, at equal length", even, ends, "percent")
    model = report["reward_model"]
    if model:
        yield Figure(
            "reward model, pairs ranked right", model["accuracy"], model["ci95"], "percent"
        )
    for checkpoint, found in report["checkpoints"].items():
        for label, key, kind, _ in view.FIGURES:
            if found.get(key) is not None:
                name = f"{checkpoint}: {label}"
                yield Figure(name, found[key], found.get(f"{key}_ci95"), kind)
        for label, key, _ in view.MANNERS:
            share = found.get("shares", {}).get(key)
            if share and share["share"] is not None:
                name = f"{checkpoint}: {label}"
                yield Figure(name, share["share"], share["ci95"], "percent")
    for row in report["tasks"]:
        if row["value"] is not None:
            parts = (row["task"], row["metric"], row.get("reading"))
            name = f"{row['checkpoint']}: {', '.join(filter(None, parts))}"
            yield Figure(name, row["value"], row["ci95"])
    for name, stage in report["stages"].items():
        value = stage["metrics"].get(stage["main_metric"])
        if isinstance(value, int | float) and name not in report["not_done"]:
            yield Figure(f"{name}: {stage['main_metric']}", value)


def side_by_side(
    runs: Mapping[str, Path],
    *,
    seeds: bool = False,
    settings: Mapping[str, Sequence[Any]] | None = None,
    paired: Sequence[Report] = (),
) -> dict[str, Any]:
    """Return what there is of several runs, as JSON holds it.

    Args:
        runs: folders by what each run is called.
        seeds: they differ by the seed alone: means over them are told.
        settings: what was set otherwise, each with its value in every run.
        paired: comparisons of last checkpoints on the same prompts (`comparison`).

    Raises:
        ArtifactError: a run has no report.
    """
    reports = {name: _report(folder) for name, folder in runs.items()}
    found = {name: _figures(runs[name], report) for name, report in reports.items()}
    rows = []
    for name in dict.fromkeys(name for mine in found.values() for name in mine):
        mine = [figures.get(name) for figures in found.values()]
        known = [figure for figure in mine if figure is not None]
        row: dict[str, Any] = {
            "figure": name,
            "kind": known[0].kind,
            "values": [figure and figure.value for figure in mine],
            "ci95": [figure and figure.ci95 for figure in mine],
        }
        if seeds:
            values = [figure.value for figure in known]
            mean = over_seeds(values)
            # What is the same in all seeds, such as a shared stage's, tells nothing of others.
            ends = None if len(set(values)) == 1 else mean.ci95
            row |= {"mean": mean.value, "ci95_over_seeds": ends}
        rows.append(row)
    return {
        "runs": {name: _head(report) for name, report in reports.items()},
        "seeds": seeds,
        "shared": _shared(list(reports.values())),
        "settings": dict(settings or {}),
        "paired": list(paired),
        "figures": rows,
    }


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report" / PAGES[0]
    if not path.is_file():
        raise ArtifactError(f"{folder} has no report yet; make it with: rlhf report {folder}")
    return read_json_object(path)


def _shared(reports: Sequence[Report]) -> list[str]:
    """Return the stages of which several runs hold the same files."""
    first, *others = (report["stages"] for report in reports)
    return [
        name
        for name, stage in first.items()
        if others
        and stage.get("digest")
        and all(name in them and them[name].get("digest") == stage["digest"] for them in others)
    ]


def _head(report: Report) -> dict[str, Any]:
    return {key: report[key] for key in ("recipe", "seed", "created", "verdict", "not_done")}


def _figures(folder: Path, report: Report) -> dict[str, Figure]:
    try:
        _head(report)
        return {figure.name: figure for figure in figures_of(report)}
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / 'report' / PAGES[0]} is of another version or was edited "
            f"({type(error).__name__}: {error}); make it anew with: rlhf report {folder}"
        ) from error


def write_side_by_side(out: Path, runs: Mapping[str, Path], **told: Any) -> Path:
    """Write the page of several runs, and its JSON; return the path of the page.

    Args:
        out: folder that they go to.
        runs: folders by what each run is called.
        **told: as in `side_by_side`.

    Raises:
        ArtifactError: a run has no report.
        StorageError: the folder can't be written.
    """
    require_writable_place(out)
    report = side_by_side(runs, **told)
    page = _page(report, runs)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        require_file_place(out / name)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(out / PAGES[0], text + "\n")
    write_atomically(out / PAGES[1], page + "\n")
    return out / PAGES[1]


def _page(report: Report, runs: Mapping[str, Path]) -> str:
    template = page_environment(TEMPLATES).get_template("side_by_side.html.j2")
    recipes = dict.fromkeys(run["recipe"] for run in report["runs"].values())
    return template.render(
        report=report,
        title=", ".join(recipes),
        names=list(runs),
        shades=view.colours(runs),
        rows=[_cells(row) for row in report["figures"]],
        charts=_charts(runs),
    )


def _cells(row: Report) -> dict[str, Any]:
    kind = row["kind"]
    cells = [
        {"value": view.number(value, kind), "ci95": view.interval(ends, kind)}
        for value, ends in zip(row["values"], row["ci95"], strict=True)
    ]
    if "mean" in row:
        ends = view.interval(row["ci95_over_seeds"], kind)
        cells.insert(0, {"value": view.number(row["mean"], kind), "ci95": ends})
    return {"label": row["figure"], "cells": cells}


def _charts(runs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the charts of each stage that trains, by the reports' order."""
    kinds = {
        stage: entry["kind"]
        for folder in runs.values()
        for stage, entry in _report(folder)["stages"].items()
    }
    drawn = []
    for stage, kind in kinds.items():
        logged = {name: read_metrics(folder / stage) for name, folder in runs.items()}
        drawn += [
            {"stage": stage, "chart": chart}
            for chart in runs_charts(kind, logged, view.colours(runs))
        ]
    return drawn
