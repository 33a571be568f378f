"""The report's tables that set checkpoints against each other: ladder, matrix, tasks and more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.evaluation.judge.sampling import decoding_words
from pipeline.evaluation.judge.summary import judge_lines
from pipeline.evaluation.judge.verdict import state
from pipeline.evaluation.report.view import MANNERS, colours, interval, judge_label, number

Figures = Mapping[str, Any]
PAIRED = (
    ("Gold reward", "gold_reward", "signed"),
    ("Reward model’s score", "proxy_reward", "signed"),
    *((label, key, "points") for label, key, _ in MANNERS),
    ("Length, tokens", "mean_length", "signed"),
    ("Ends by itself", "ended_share", "points"),
)
"""Paired differences of a step: label, measure, and how it is written."""
_TONES = {
    "gold_reward": 1, "correct": 1, "condescending": -1, "long_winded": -1, "invented": -1,
    "ended_share": 1,
}  # fmt: skip
"""Measures of which more is better (1) or worse (-1)."""


def names_of(report: Figures) -> list[str]:
    """Return the checkpoints, also of an evaluation that only asked tasks."""
    asked = (row["checkpoint"] for row in report.get("tasks") or ())
    return list(dict.fromkeys([*report["checkpoints"], *asked]))


_NO_SHARES = ("length_drift", "kl_per_token")
"""Pathologies that are ratios or nats."""


def judge_rows(report: Figures) -> list[dict[str, str]]:
    """Return who judged, by what, and what is to be known of it."""
    judges, rows = report.get("judges") or {}, []
    for name, told in judges.items():
        digest = told.get("prompt") or told.get("content")
        rows.append(
            {
                "name": judge_label(name, judges),
                "content": digest[:16] if isinstance(digest, str) else "",
                "told": "; ".join(judge_lines({"judges": {name: told}})),
            }
        )
    return rows


def ladder(report: Figures) -> list[dict[str, Any]]:
    """Return the steps of training: each checkpoint against the one before it.

    A step has `a`, `b`, `bars` (win rates, one a judge) and `changes` (paired differences).
    """
    shades, judges = colours(report["checkpoints"]), report.get("judges") or {}
    steps = []
    for b, a in pairwise(report["checkpoints"]):
        pair = (a, b)
        bars = [
            _bar(rate, judge_label(rate["judge"], judges), shades)
            for rate in report["win_rates"]
            if (rate["a"], rate["b"]) == pair and rate["n"]
        ]
        found = {r["measure"]: r for r in report["differences"] if (r["a"], r["b"]) == pair}
        changes = [
            _change(label, found[key], key, kind) for label, key, kind in PAIRED if key in found
        ]
        if bars or changes:
            steps.append({"a": a, "b": b, "bars": bars, "changes": changes})
    return steps


def _bar(rate: Figures, label: str, shades: Mapping[str, int]) -> dict[str, Any]:
    low, high = (100 * end for end in rate["ci95"])
    even = rate.get("rate_length_controlled")
    return {
        "label": label,
        "counts": f"{rate['wins']:,} won · {rate['ties']:,} tied · {rate['losses']:,} lost",
        "shares": [100 * rate[key] / rate["n"] for key in ("wins", "ties", "losses")],
        "shades": [shades[rate["a"]], shades[rate["b"]]],
        "low": low,
        "width": high - low,
        "value": number(rate["rate"], "percent"),
        "ci95": interval(rate["ci95"], "percent"),
        "state": state(rate["ci95"]),
        "even": "" if even is None else number(even, "percent"),
        "even_ci95": interval(rate.get("ci95_length_controlled"), "percent"),
    }


def _change(label: str, row: Figures, measure: str, kind: str) -> dict[str, str]:
    shown = state(row["ci95"], even=0.0)
    sign = {"better": 1, "worse": -1, "not shown": 0}[shown] * _TONES.get(measure, 0)
    return {
        "label": label,
        "value": number(row["difference"], kind),
        "ci95": interval(row["ci95"], kind),
        "tone": {1: "good", -1: "bad"}.get(sign, "plain" if shown != "not shown" else "faint"),
    }


def matrices(report: Figures) -> list[dict[str, Any]]:
    """Return who beats whom, a table a judge; none of fewer than three checkpoints.

    A cell is the row's win rate over the column, `weight` how far from even it is, 0 to 100, where
    its interval leaves out the even value.
    """
    names, judges = list(report["checkpoints"]), report.get("judges") or {}
    if len(names) < 3:
        return []
    found = []
    for judge in dict.fromkeys(rate["judge"] for rate in report["win_rates"]):
        rates = {(r["a"], r["b"]): r for r in report["win_rates"] if r["judge"] == judge}
        ratings = {r["checkpoint"]: r for r in report.get("ratings") or () if r["judge"] == judge}
        met = [name for name in names if any(name in pair for pair in rates)]
        rows = [
            {
                "name": name,
                "cells": [_cell(name, other, rates) for other in met],
                "rating": _rating(ratings.get(name)),
            }
            for name in met
        ]
        label = judge_label(judge, judges)
        found.append({"judge": label, "names": met, "rows": rows, "rated": bool(ratings)})
    return found


def _cell(name: str, other: str, rates: Mapping[tuple[str, str], Figures]) -> dict[str, Any]:
    rate, turned = rates.get((name, other)), False
    if rate is None:
        rate, turned = rates.get((other, name)), True
    if rate is None or rate["rate"] is None:
        return {"value": "", "ci95": "", "tone": "", "weight": 0}
    low, high = rate["ci95"]
    value, ends = rate["rate"], [low, high]
    if turned:
        value, ends = 1 - value, [1 - high, 1 - low]
    shown = state(ends)
    return {
        "value": number(value, "percent"),
        "ci95": interval(ends, "percent"),
        "tone": {"better": "good", "worse": "bad"}.get(shown, ""),
        "weight": 0 if shown == "not shown" else round(12 + 76 * abs(value - 0.5)),
    }


def _rating(row: Figures | None) -> dict[str, str]:
    if row is None or row.get("elo") is None:
        return {"value": "", "ci95": ""}
    ends = row.get("ci95")
    points = [1000 + 400 / 2.302585092994046 * end for end in ends] if ends else None
    return {
        "value": f"{row['elo']:,.0f}",
        "ci95": f"{points[0]:,.0f} to {points[1]:,.0f}" if points else "",
    }


def _by_checkpoint(
    rows: Sequence[Figures], names: Sequence[str], key: Callable[[Figures], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[Figures | None]]:
    """Return the rows of the same key side by side, one a checkpoint."""
    groups: dict[tuple[Any, ...], dict[str, Figures]] = {}
    for row in rows:
        groups.setdefault(key(row), {})[row["checkpoint"]] = row
    return {group: [mine.get(name) for name in names] for group, mine in groups.items()}


def task_rows(report: Figures) -> list[dict[str, Any]]:
    """Return the table of tasks: one row for each task, metric and reading of the answer."""
    names = names_of(report)
    groups = _by_checkpoint(
        report.get("tasks") or (),
        names,
        lambda row: (row["task"], row["metric"], row.get("reading"), row.get("shots")),
    )
    rows = []
    for (task, metric, reading, shots), mine in groups.items():
        first = next(row for row in mine if row is not None)
        note = [metric.replace("_", " "), *([f"{reading} reading"] if reading else [])]
        note += ["zero-shot" if shots == 0 else f"{shots}-shot"] if shots is not None else []
        note.append(f"{first['n']:,} questions")
        whole = all(0 <= row["value"] <= 1 for row in mine if row and row["value"] is not None)
        cells = [_estimate(row, "percent" if whole else "number") for row in mine]
        rows.append({"label": task, "note": ", ".join(note), "cells": cells})
    return rows


def _estimate(row: Figures | None, kind: str) -> dict[str, str]:
    if row is None:
        return {"value": "–", "ci95": ""}
    return {"value": number(row["value"], kind), "ci95": interval(row.get("ci95"), kind)}


HEADS = {
    "classify": ("classes", "accuracy", "the commonest class"),
    "span": ("answers in a text", "exact_match", "the commonest answer"),
    "tag": ("tags of words", "precision", "each word’s commonest tag"),
}
"""Of each head of a finetune stage what it gives, its second figure, and what its floor says."""


def head_rows(report: Figures) -> list[dict[str, Any]]:
    """Return the table of heads: F1, a second figure, the floor, and how far above it F1 is."""
    rows = []
    for stage, quality in (report.get("heads") or {}).items():
        what, second, floor = HEADS[quality["head"]]
        shown = (
            ("f1", "number", ""),
            (second, "percent", second.replace("_", " ")),
            ("floor_f1", "number", floor),
            ("f1_over_floor", "signed", ""),
        )
        cells = [
            {**_estimate(quality["figures"][key], kind), "note": note} for key, kind, note in shown
        ]
        rows.append({"name": stage, "note": f"{what}, {quality['n']:,} rows", "cells": cells})
    return rows


def pathology_rows(report: Figures) -> list[dict[str, Any]]:
    """Return the table of pathologies, with the likely cause of each."""
    names = names_of(report)
    groups = _by_checkpoint(report.get("pathologies") or (), names, lambda row: (row["name"],))
    rows = []
    for (name,), mine in groups.items():
        kind = "number" if name in _NO_SHARES else "percent"
        causes = dict.fromkeys(str(row["cause"]) for row in mine if row and row.get("alarm"))
        cells = [
            {**_estimate(row, kind), "tone": "bad" if row and row.get("alarm") else ""}
            for row in mine
        ]
        label = str(name).replace("_", " ").capitalize()
        rows.append({"label": label, "note": "; ".join(causes), "cells": cells})
    return rows


def tax_rows(report: Figures) -> list[dict[str, Any]]:
    """Return what training cost on the base model's text, in bits per byte.

    Where the evaluation did not count the differences, they are of the figures, without interval.
    """
    bits = {
        name: figures["bits_per_byte"]
        for name, figures in report["checkpoints"].items()
        if figures.get("bits_per_byte") is not None
    }
    told = {row["checkpoint"]: row for row in report.get("alignment_tax") or ()}
    base, *others = bits or [""]
    rows = [{"name": base, "bits": number(bits[base]), "value": "", "ci95": ""}] if bits else []
    for name in others:
        row = told.get(name, {"difference": bits[name] - bits[base]})
        value, ends = number(row["difference"], "signed"), interval(row.get("ci95"), "signed")
        rows.append({"name": name, "bits": number(bits[name]), "value": value, "ci95": ends})
    return rows


def overlap_rows(report: Figures) -> list[dict[str, Any]]:
    """Return how many of the evaluation's prompts each stage had, a row a stage."""
    names = names_of(report)
    groups = _by_checkpoint(report.get("overlap") or (), names, lambda row: (row["stage"],))
    return [
        {
            "label": stage,
            "cells": [_shared(row) for row in mine],
        }
        for (stage,), mine in groups.items()
    ]


def _shared(row: Figures | None) -> str:
    if row is None:
        return "–"
    known = row["shared_prompts"]  # not where the stage's sources can't be read again
    return "not known" if known is None else f"{known:,} of {row['n']:,}"


def provenance_rows(report: Figures) -> list[dict[str, str]]:
    """Return what each checkpoint is and how it was asked."""
    rows = []
    for row in report.get("provenance") or ():
        told = [decoding_words(row["decoding"], row.get("own_settings", ()))]
        told.append(f"{row['decoding']['max_new_tokens']} tokens at most")
        told += [f"in {row['dtype']}"] if "dtype" in row else []
        template = row.get("template")
        rows.append(
            {
                "name": row["checkpoint"],
                "content": str(row["content"])[:16],
                "seed": str(row["seed"]),
                "decoding": ", ".join(told),
                "template": template[:16] if template else "none, plain text",
                "prompt": str(row.get("first_prompt") or ""),
                "tokens": " ".join(map(str, row.get("first_tokens") or ())),
            }
        )
    return rows
