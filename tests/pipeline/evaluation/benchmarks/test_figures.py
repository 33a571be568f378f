"""Figures of tasks: means with intervals, over questions and over draws of examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data.intervals import wilson
from pipeline.evaluation.benchmarks.figures import figures, mean_over_draws


def choice_row(
    index: int, *, right: bool, draw: int = 0, checkpoint: str = "sft"
) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "task": "quiz", "kind": "choices", "index": index, "draw": draw,
        "shots": 2, "choices": ["a", "b"], "answer": 0 if right else 1, "logprobs": [-1.0, -2.0],
        "bytes": [1, 1], "tokens": [1, 1], "first_tokens": {"ids": [index]},
    }  # fmt: skip


def test_a_share_has_wilsons_interval_and_chance_beside_it() -> None:
    rows = [choice_row(i, right=i < 7) for i in range(10)]
    found = {one["metric"]: one for one in figures(rows, resamples=10, seed=0)}
    expected = wilson(7, 10)
    assert found["accuracy"] == {
        "checkpoint": "sft", "task": "quiz", "kind": "choices", "metric": "accuracy", "value": 0.7,
        "ci95": expected.ci95, "n": 10, "shots": 2, "first_tokens": {"ids": [0]},
    }  # fmt: skip
    assert (found["chance"]["value"], found["chance"]["ci95"]) == (0.5, None)


def test_draws_are_told_one_by_one_and_checkpoints_apart() -> None:
    rows = [
        choice_row(i, right=i < 4 + draw, draw=draw, checkpoint=name)
        for name in ("base", "sft")
        for draw in range(3)
        for i in range(8)
    ]
    found = [one for one in figures(rows, resamples=10, seed=0) if one["metric"] == "accuracy"]
    assert [one["checkpoint"] for one in found] == ["base", "sft"]
    assert found[0]["draws"] == [0.5, 0.625, 0.75]
    assert found[0]["value"] == pytest.approx(0.625)
    low, high = found[0]["ci95"]
    assert 0 <= low < 0.625 < high <= 1


def test_all_right_behind_every_draw_has_the_interval_of_a_share() -> None:
    assert mean_over_draws(np.ones((3, 20)), resamples=10, seed=0) == wilson(20, 20)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_interval_over_draws_covers(spread: float) -> None:
    generator = np.random.default_rng(0)

    def share(questions: Any, draws: Any) -> Any:
        return 1 / (1 + np.exp(-(1 + questions + draws)))

    truth = share(generator.normal(0, 1.5, 10**6), generator.normal(0, spread, 10**6)).mean()
    covered = 0
    for _ in range(300):
        chances_DQ = share(generator.normal(0, 1.5, 60), generator.normal(0, spread, (5, 1)))
        marks_DQ = (generator.random((5, 60)) < chances_DQ).astype(float)
        one = mean_over_draws(marks_DQ, resamples=10, seed=0)
        assert one.low is not None and one.high is not None
        covered += one.low <= truth <= one.high
    assert 0.92 <= covered / 300 <= 0.98
