"""Several scorers as one, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import RewardError
from reward.computed.rules import rule
from reward.ensemble import Ensemble, WeightedSum, combined
from reward.scorer import Facts, Scorer

# Two responses, three members: means 2 and 0, variances 2/3 and 6, deviations 0.8165 and 2.4495.
SCORES_MB = torch.tensor([[1.0, -3.0], [2.0, 0.0], [3.0, 3.0]], dtype=torch.float64)


class Fixed:
    name = "fixed"

    def __init__(self, *scores: Any) -> None:
        self.scores = list(scores)

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        return self.scores


@pytest.mark.parametrize(
    ("how", "coefficient", "expected"),
    [
        ("mean", 9.0, [2.0, 0.0]),
        ("min", 9.0, [1.0, -3.0]),
        ("mean_minus_std", 2.0, [2 - 2 * 0.816496580927726, -2 * 2.449489742783178]),
        ("mean_minus_variance", 0.5, [2 - 1 / 3, -3.0]),
        ("mean_minus_std", 0.0, [2.0, 0.0]),
    ],
)
def test_ways_of_combining_by_hand(how: Any, coefficient: float, expected: list[float]) -> None:
    found = combined(scores_MB=SCORES_MB, how=how, coefficient=coefficient)
    assert found.tolist() == pytest.approx(expected)
    ensemble = Ensemble([Fixed(*row) for row in SCORES_MB.tolist()], how, coefficient)
    assert isinstance(ensemble, Scorer)
    assert ensemble.score(["q"] * 2, ["a", "b"]) == pytest.approx(expected)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=5))
def test_disagreement_never_pays_and_the_worst_is_the_least(rows: list[list[float]]) -> None:
    scores_MB = torch.tensor(rows, dtype=torch.float64)
    mean, least, std, variance = (
        combined(scores_MB=scores_MB, how=how)
        for how in ("mean", "min", "mean_minus_std", "mean_minus_variance")
    )
    for cautious in (least, std, variance):
        assert bool((cautious <= mean + 1e-9).all())
    alike = combined(scores_MB=scores_MB[:1].expand(4, 3), how="mean_minus_std")
    assert torch.allclose(alike, scores_MB[0])


def test_a_member_that_miscounts_is_named() -> None:
    with pytest.raises(RewardError, match="reward fixed gave 1 scores for 2 responses"):
        Ensemble([Fixed(1.0, 2.0), Fixed(1.0)]).score(["q"] * 2, ["a", "b"])


def test_a_weighted_sum_clips_weighs_and_passes_facts_on() -> None:
    summed = WeightedSum(
        [(Fixed(5.0, -1.0), 2.0, 3.0), (rule("length_penalty", free=2), 0.1, None)]
    )
    facts = Facts(rows=[{}, {}], tokens=[12, 1], ended=[True, True])
    # 2 * min(5, 3) - 0.1 * 10; 2 * -1 - 0.1 * 0
    assert summed.score_informed(["q"] * 2, ["a", "b"], facts) == pytest.approx([5.0, -2.0])
    with pytest.raises(RewardError, match="not known here"):
        summed.score(["q"] * 2, ["a", "b"])
