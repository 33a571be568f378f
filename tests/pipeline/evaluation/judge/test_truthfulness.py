"""What answers are in truth, how sure they were, and what abstaining would be worth: by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.judge.truthfulness import COVERAGES, probability, risk_area, truthfulness
from pipeline.generation.generate import Sample

DRAW = {"resamples": 200, "seed": 0}


def sample(
    outcome: str, sure: float | None, *, invented: bool = False, kind: str = "fact"
) -> dict[str, Any]:
    assessment = {
        "kind": kind,
        "outcome": outcome,
        "correct": None if outcome == "unjudged" else outcome == "right",
        "invented": invented,
    }
    return {"checkpoint": "sft", "index": 0, "assessment": assessment, "probability": sure}


def found(*rows: dict[str, Any]) -> dict[str, Any]:
    (only,) = truthfulness(rows, (), **DRAW)
    return only


def test_an_answer_has_one_outcome() -> None:
    told = found(
        sample("right", 0.9),
        sample("wrong", 0.8, invented=True),
        sample("wrong", 0.7),
        sample("broken", 0.6),
        sample("ignorant", 0.5),
        sample("right", 0.9, kind="unknown"),
        sample("unjudged", 0.9, kind="other"),
    )
    assert (told["checkpoint"], told["source"], told["n"]) == ("sft", "prompts", 6)
    counts = {
        kind: {outcome: share["count"] for outcome, share in mine.items()}
        for kind, mine in told["outcomes"].items()
    }
    assert counts == {
        "all": {"right": 2, "invented": 1, "unknown": 1, "wrong": 2},
        "fact": {"right": 1, "invented": 1, "unknown": 1, "wrong": 2},
        "unknown": {"right": 1, "invented": 0, "unknown": 0, "wrong": 0},
    }
    assert sum(share["share"] for share in told["outcomes"]["all"].values()) == pytest.approx(1)


def test_calibration_and_risk_by_hand() -> None:
    told = found(
        sample("right", 0.95),
        sample("wrong", 0.85, invented=True),
        sample("right", 0.75),
        sample("wrong", 0.15),
        sample("right", None),  # not known how sure: it counts among the outcomes alone
    )
    gaps = [abs(0.95 - 1), abs(0.85 - 0), abs(0.75 - 1), abs(0.15 - 0)]
    assert told["calibration"]["ece"] == pytest.approx(np.mean(gaps))
    assert [one["n"] for one in told["calibration"]["reliability"]] == [1, 1, 1, 1]
    assert [one["accuracy"] for one in told["calibration"]["reliability"]] == [0, 1, 0, 1]
    risk = told["risk_coverage"]
    # Of the 1, 2, 3 and 4 surest: 0, 1/2, 1/3 and 2/4 are not right.
    assert risk["area"] == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 1 / 2]))
    assert [point["coverage"] for point in risk["points"]] == [*COVERAGES]
    assert [point["risk"] for point in risk["points"]] == pytest.approx([1 / 2, 1 / 3, 1 / 2])
    assert [point["invented"] for point in risk["points"]] == pytest.approx([1 / 2, 1 / 3, 1 / 4])
    assert [point["threshold"] for point in risk["points"]] == [0.85, 0.75, 0.15]
    assert risk["curve"][-1] == [1.0, 0.5] and len(risk["curve"]) == 20


def test_the_area_of_risk_has_the_interval_of_its_jackknife() -> None:
    # How far the area moves as one of 40 answers is left out; all of one outcome still vary.
    wrong = np.random.default_rng(1).random(40) < np.linspace(0.1, 0.7, 40)
    found = risk_area(wrong.astype(float))

    def area(marks: np.ndarray) -> float:
        return float(np.mean(np.cumsum(marks) / np.arange(1, len(marks) + 1)))

    assert found.value == pytest.approx(area(wrong))
    left_out = [area(np.delete(wrong, place)) for place in range(40)]
    deviation = np.sqrt(39 / 40 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert found.high - found.low == pytest.approx(2 * 2.02 * deviation, rel=0.15)
    none = risk_area(np.zeros(40))
    assert none.value == none.low == 0 < none.high < 0.1


def test_one_who_knows_what_it_knows_gains_by_abstaining() -> None:
    draw = np.random.default_rng(0)
    sure = draw.random(400)
    knows = [sample("right" if draw.random() < p else "wrong", float(p)) for p in sure]
    blind = [sample("right" if draw.random() < 0.5 else "wrong", float(p)) for p in sure]
    knowing, blindly = found(*knows), found(*blind)
    low, high = knowing["calibration"]["ci95_ece"]
    assert low == 0 and high < 0.1 < blindly["calibration"]["ci95_ece"][0]
    assert knowing["risk_coverage"]["ci95_area"][1] < blindly["risk_coverage"]["ci95_area"][0]
    assert knowing["risk_coverage"]["points"][0]["risk"] < 0.35


def test_without_a_judge_or_a_probability_nothing_is_told() -> None:
    assert truthfulness([{**sample("right", 0.5), "assessment": None}], (), **DRAW) == []
    told = found({k: v for k, v in sample("right", None).items() if k != "probability"})
    assert told["calibration"] is told["risk_coverage"] is None


def test_truthfulqa_is_answered_by_its_likeliest_answer() -> None:
    def row(index: int, logprobs: list[float]) -> dict[str, Any]:
        choices = ["It is.", "I have no comment.", "It is not."]
        common = {"checkpoint": "sft", "task": "tqa", "kind": "truthfulqa", "index": index}
        return {**common, "choices": choices, "true": [True, True, False], "logprobs": logprobs}

    rows = [row(0, [-1.0, -2.0, -3.0]), row(1, [-9, -1, -2]), row(2, [-900.0, -901.0, -899.0])]
    (told,) = truthfulness((), [*rows, {**rows[0], "kind": "choices"}], **DRAW)
    assert (told["source"], told["n"]) == ("tqa", 3)
    counts = {outcome: share["count"] for outcome, share in told["outcomes"]["all"].items()}
    assert counts == {"right": 1, "invented": 1, "unknown": 1, "wrong": 0}
    share = 1 / (1 + math.exp(-1) + math.exp(-2))
    assert told["risk_coverage"]["points"][-1]["threshold"] == pytest.approx(share)


def test_tokens_of_a_tool_do_not_make_an_answer_surer() -> None:
    own = Sample([1, 2], True, [math.log(0.5), math.log(0.125)])
    assert probability(own) == pytest.approx(0.25)
    called = Sample([1, 7, 7, 2], True, [math.log(0.5), 0.0, 0.0, math.log(0.125)],
                    own=[True, False, False, True])  # fmt: skip
    assert probability(called) == pytest.approx(0.25)
    assert probability(Sample([], False, [])) is None
