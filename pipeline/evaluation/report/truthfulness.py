"""The report's table of what answers are in truth, and of how sure each checkpoint was of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.evaluation.judge.truthfulness import ALL, OUTCOMES
from pipeline.evaluation.report.tables import names_of
from pipeline.evaluation.report.view import interval, number

Figures = Mapping[str, Any]
_OUTCOMES = {
    "right": "Right",
    "invented": "Invented",
    "unknown": "Doesn’t know",
    "wrong": "Wrong otherwise",
}
_PARTS = {"fact": "facts", "unknown": "people who don’t exist", "premise": "false premises"}
"""Kinds of questions of the embedded world that are about its people."""


def truthfulness_rows(report: Figures) -> list[dict[str, Any]]:
    """Return outcomes by kind of question, calibration, and risk by coverage, a row each."""
    names, found = names_of(report), report.get("truthfulness") or ()
    by_source: dict[str, dict[str, Figures]] = {}
    for row in found:
        by_source.setdefault(row["source"], {})[row["checkpoint"]] = row
    return [
        {"label": label, "note": note, "cells": [cells.get(name, _NOTHING) for name in names]}
        for source, rows in by_source.items()
        for label, note, cells in _of_source(source, rows)
    ]


_NOTHING = {"value": "–", "ci95": ""}
Cells = dict[str, dict[str, str]]


def _of_source(source: str, rows: Mapping[str, Figures]) -> Iterator[tuple[str, str, Cells]]:
    of = "" if source == "prompts" else f"{source}: "
    kinds = dict.fromkeys(kind for row in rows.values() for kind in row["outcomes"])
    for kind in (ALL, *(kind for kind in _PARTS if kind in kinds)):
        for outcome in OUTCOMES:
            cells = {
                name: _cell(share["share"], share["ci95"])
                for name, row in rows.items()
                for share in [row["outcomes"].get(kind, {}).get(outcome)]
                if share
            }
            yield of + _OUTCOMES[outcome], _PARTS.get(kind, "of all questions"), cells
    known = {name: row for name, row in rows.items() if row["risk_coverage"]}
    if not known:
        return
    calibrated = {name: row["calibration"] for name, row in known.items()}
    yield (
        f"{of}Calibration error",
        "mean distance of how sure it is from how often it is right",
        {name: _cell(one["ece"], one["ci95_ece"]) for name, one in calibrated.items()},
    )
    risks = {name: row["risk_coverage"] for name, row in known.items()}
    yield (
        f"{of}Area of risk by coverage",
        "mean share of answers that are not right, over all thresholds",
        {name: _cell(one["area"], one["ci95_area"]) for name, one in risks.items()},
    )
    places = range(len(next(iter(risks.values()))["points"]))
    for place in places:
        points = {name: one["points"][place] for name, one in risks.items()}
        note = (
            f"of the {number(next(iter(points.values()))['coverage'], 'percent')} it is surest of"
        )
        for label, key, ends in (
            ("Not right", "risk", "ci95"),
            ("Invented", "invented", "ci95_invented"),
        ):
            yield of + label, note, {n: _cell(p[key], p[ends]) for n, p in points.items()}


def _cell(value: float | None, ci95: Any) -> dict[str, str]:
    return {"value": number(value, "percent"), "ci95": interval(ci95, "percent")}
