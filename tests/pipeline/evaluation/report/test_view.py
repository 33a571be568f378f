"""Figures as people read them."""

from __future__ import annotations

import pytest

from data.records import chat
from pipeline.evaluation.report.reward_model import quality_rows
from pipeline.evaluation.report.view import (
    _size,
    clock,
    interval,
    number,
    prompt_text,
    sample_groups,
)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.12345, "number", "0.123"),
        (12.345, "number", "12.35"),
        (-1.5, "number", "−1.50"),
        (12345.6, "number", "12,346"),
        (0.051, "percent", "5.1\u00a0%"),
        (-0.021, "points", "−2.1"),
        (0.021, "points", "+2.1"),
        (15.26, "short", "15.3"),
        (None, "percent", "–"),
    ],
)
def test_numbers(value: float | None, kind: str, text: str) -> None:
    assert number(value, kind) == text


def test_intervals_name_the_unit_once() -> None:
    assert interval([0.1, 0.25], "percent") == "10.0 to 25.0"
    assert interval(None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (125, "2 min 5 s"), (7260, "2 h 1 min"), (None, "–")],
)
def test_times(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "999 B"), (1500, "2 kB"), (93_000_000, "93 MB"), (2_400_000_000, "2.4 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert _size(size) == text


def test_a_lone_question_has_no_role() -> None:
    assert prompt_text(chat("Who?")) == "Who?"
    assert prompt_text(chat("Hi", "Yes?")) == "user: Hi\nassistant: Yes?"


def test_samples_are_drawn_by_the_seed_alone() -> None:
    rows = [
        {"index": i, "prompt": f"q{i}", "checkpoint": name, "gold": gold}
        for name, gold in (("sft", 0), ("ppo", 1))
        for i in range(50)
    ]
    chosen = [group["prompt"] for group in sample_groups(rows, seed=1, count=5)]
    assert len(set(chosen)) == 5
    better = [{**row, "gold": 1 - row["gold"]} for row in rows[::-1]]
    assert [group["prompt"] for group in sample_groups(better, seed=1, count=5)] == chosen
    assert [group["prompt"] for group in sample_groups(rows, seed=2, count=5)] != chosen
    assert len(sample_groups(rows, seed=1, count=500)) == 50


def test_shares_over_no_pairs_are_left_out() -> None:
    quality = {
        "accuracy": 0.7, "ci95": [0.6, 0.8], "n_pairs": 50, "longer_wins": 0.5,
        "shorter_wins": 0.5, "accuracy_length_matched": None, "ci95_length_matched": [0.0, 1.0],
    }  # fmt: skip
    assert [row["label"] for row in quality_rows(quality)] == [
        "Reward model", "The longer answer wins", "The shorter answer wins",
    ]  # fmt: skip
    assert quality_rows(None) == []
