"""Figures as people read them."""

from __future__ import annotations

import math

import pytest

from data.records import chat
from pipeline.evaluation.report.reward_model import quality_rows
from pipeline.evaluation.report.view import (
    _size,
    clock,
    interval,
    number,
    pretraining_lines,
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


def test_what_pretraining_learned_stands_beside_what_no_language_tells() -> None:
    learned = {
        "eval/loss": math.log(4), "eval/accuracy": 0.6, "eval/unigram_loss": math.log(100),
        "eval/unigram_accuracy": 0.07, "eval/copy_loss": math.log(50), "eval/copy_accuracy": 0.125,
    }  # fmt: skip
    stages = {
        "base": {"metrics": learned}, "gone": {"metrics": learned},
        "causal": {"metrics": {"eval/loss": 1.0}},
    }  # fmt: skip
    (line,) = pretraining_lines({"stages": stages, "not_done": {"gone": "outdated"}})
    assert line == (
        "base, of the tokens asked for in held-out text: 60.0\u00a0% right and a perplexity of "
        "4.00 by the model; 7.0\u00a0% right and a perplexity of 100.00 by the most frequent token "
        "each time; 12.5\u00a0% right and a perplexity of 50.00 by copying alone."
    )
    earlier = {k: v for k, v in learned.items() if "copy" not in k}
    (line,) = pretraining_lines({"stages": {"base": {"metrics": earlier}}, "not_done": {}})
    assert "copying" not in line
