"""Tables that set checkpoints against each other, of an evaluation that has all keys."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.report.tables import (
    head_rows,
    ladder,
    matrices,
    overlap_rows,
    pathology_rows,
    provenance_rows,
    task_rows,
    tax_rows,
)

NAMES = ("base", "sft", "ppo")


def report(**more: Any) -> dict[str, Any]:
    def rate(a: str, b: str, share: float) -> dict[str, Any]:
        counts = {"wins": 6, "ties": 2, "losses": 2, "n": 10}
        ends = [share - 0.1, share + 0.1]
        return {"a": a, "b": b, "judge": "gold", "rate": share, "ci95": ends, **counts}

    return {
        "checkpoints": {name: {"bits_per_byte": 1.0 + i / 2} for i, name in enumerate(NAMES)},
        "win_rates": [rate("sft", "base", 0.9), rate("ppo", "sft", 0.7), rate("ppo", "base", 0.55)],
        "differences": [
            {"a": "ppo", "b": "sft", "measure": m, "n": 9, "difference": d,
             "ci95": [d - 0.1, d + 0.1]}
            for m, d in (("condescending", -0.4), ("correct", 0.05), ("invented", 0.2))
        ],
        **more,
    }  # fmt: skip


def test_each_checkpoint_stands_against_the_one_before() -> None:
    first, last = ladder(report())
    assert (first["a"], first["b"], last["a"], last["b"]) == ("sft", "base", "ppo", "sft")
    (bar,) = last["bars"]
    assert (bar["label"], bar["value"], bar["ci95"]) == (
        "Gold annotator", "70.0\u00a0%", "60.0 to 80.0",
    )  # fmt: skip
    assert bar["shares"] == [60, 20, 20]
    assert {change["label"]: change["tone"] for change in last["changes"]} == {
        "Right": "faint", "Condescending": "good", "Invented": "bad",
    }  # fmt: skip


def test_a_matrix_has_both_directions_and_colours_what_is_shown() -> None:
    ratings = [
        {"checkpoint": n, "judge": "gold", "bradley_terry": b, "elo": 1000 + 173.7 * b, "ci95": c}
        for n, b, c in (("base", 0.0, None), ("sft", 1.0, [0.5, 1.5]), ("ppo", 2.0, [1.0, 3.0]))
    ]
    (matrix,) = matrices(report(ratings=ratings))
    base, sft, ppo = matrix["rows"]
    assert [cell["value"] for cell in ppo["cells"]] == ["55.0\u00a0%", "70.0\u00a0%", ""]
    assert base["cells"][1]["value"] == "10.0\u00a0%"
    assert [row["cells"][0]["tone"] for row in (sft, ppo)] == ["good", ""]
    assert ppo["rating"] == {"value": "1,347", "ci95": "1,174 to 1,521"}
    assert matrices({**report(), "checkpoints": {"base": {}, "sft": {}}}) == []


def test_tasks_stand_by_metric_and_reading() -> None:
    rows = [
        {"checkpoint": n, "task": "gsm8k", "metric": "accuracy", "reading": r, "shots": 5,
         "value": 0.25, "ci95": [0.2, 0.3], "n": 100}
        for n in ("sft", "ppo") for r in ("strict", "ours")
    ]  # fmt: skip
    strict, ours = task_rows(report(tasks=rows))
    assert strict["note"] == "accuracy, strict reading, 5-shot, 100 questions"
    assert [cell["value"] for cell in ours["cells"]] == ["–", "25.0\u00a0%", "25.0\u00a0%"]
    alone = task_rows({"checkpoints": {}, "tasks": rows})
    assert [cell["value"] for cell in alone[0]["cells"]] == ["25.0\u00a0%"] * 2


def test_the_cost_on_the_base_models_text_is_a_difference() -> None:
    assert [row["value"] for row in tax_rows(report())] == ["", "+0.500", "+1.00"]
    told = [
        {"checkpoint": "ppo", "bits_per_byte": 2.0, "difference": 1.0, "ci95": [0.9, 1.1], "n": 9}
    ]
    assert tax_rows(report(alignment_tax=told))[2] == {
        "name": "ppo", "bits": "2.00", "value": "+1.00", "ci95": "+0.900 to +1.10",
    }  # fmt: skip


def test_pathologies_overlap_and_provenance() -> None:
    found = report(
        pathologies=[
            {"checkpoint": n, "name": "no_end", "value": 0.3, "ci95": [0.25, 0.35], "cause": n,
             "alarm": n == "ppo"}
            for n in NAMES
        ],
        overlap=[{"checkpoint": "ppo", "stage": "sft", "shared_prompts": 3, "n": 10},
                 {"checkpoint": "ppo", "stage": "reward", "shared_prompts": None, "n": 10}],
        provenance=[
            {"checkpoint": "base", "content": "ab" * 32, "seed": 7, "template": None,
             "decoding": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "max_new_tokens": 8},
             "first_prompt": "Who?"},
        ],
    )  # fmt: skip
    (row,) = pathology_rows(found)
    assert (row["label"], row["note"]) == ("No end", "ppo")
    assert [cell["tone"] for cell in row["cells"]] == ["", "", "bad"]
    assert overlap_rows(found) == [
        {"label": "sft", "cells": ["–", "–", "3 of 10"]},
        {"label": "reward", "cells": ["–", "–", "not known"]},
    ]
    assert provenance_rows(found)[0] | {"content": ""} == {
        "name": "base", "content": "", "seed": "7", "template": "none, plain text",
        "decoding": "temperature 0.7, top-k 50, top-p 0.9, 8 tokens at most", "prompt": "Who?",
        "tokens": "",
    }  # fmt: skip


def test_heads_stand_beside_their_floors() -> None:
    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "ci95": [value - 0.05, value + 0.05]}

    figures = {
        "f1": figure(0.9), "exact_match": figure(0.8), "floor_f1": figure(0.1),
        "f1_over_floor": figure(0.8),
    }  # fmt: skip
    [row] = head_rows(report(heads={"who": {"head": "span", "n": 300, "figures": figures}}))
    assert (row["name"], row["note"]) == ("who", "answers in a text, 300 rows")
    assert [cell["value"] for cell in row["cells"]] == ["0.900", "80.0\u00a0%", "0.100", "+0.800"]
    assert [cell["ci95"] for cell in row["cells"]][1] == "75.0 to 85.0"
    assert head_rows(report()) == []
