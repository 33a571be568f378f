"""A reward model beside the better length rule: three states, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from reward.quality.length_rule import beats_length, verdict, warning
from reward.quality.pairs import ScoredPair
from reward.quality.quality import quality


def pair(prompt: int, *, right: bool, longer: bool) -> ScoredPair:
    lengths = (9, 3) if longer else (3, 9)
    return ScoredPair(str(prompt), float(right), float(not right), *lengths)


def pairs(n: int, *, right: int, longer: int) -> list[ScoredPair]:
    """So many prompts with a pair each, the first ones right, the last ones won by the longer."""
    return [pair(i, right=i < right, longer=i >= n - longer) for i in range(n)]


@pytest.mark.parametrize(
    ("right", "longer", "state", "rule", "difference"),
    [
        (36, 20, "beats", "longer", 0.4),
        (36, 4, "not shown", "shorter", 0.0),
        (22, 20, "not shown", "longer", 0.05),
        (12, 36, "beaten", "longer", -0.6),
        (12, 4, "beaten", "shorter", -0.6),
    ],
)
def test_the_better_rule_is_beaten_or_not(
    right: int, longer: int, state: str, rule: str, difference: float
) -> None:
    found = beats_length(pairs(40, right=right, longer=longer))
    assert found is not None
    assert (found["state"], found["rule"]) == (state, rule)
    assert found["difference"] == pytest.approx(difference)
    assert found["rule_accuracy"] == pytest.approx(max(longer, 40 - longer) / 40)
    assert found["ci95"][0] <= found["difference"] <= found["ci95"][1]


def test_a_model_that_is_the_rule_is_not_shown_to_beat_it() -> None:
    same = [pair(i, right=i % 3 > 0, longer=i % 3 > 0) for i in range(60)]
    found = quality(same)
    assert found["beats_length"]["difference"] == 0
    assert found["beats_length"]["state"] == "not shown"
    assert found["warning"] == (
        "the reward model is not shown to beat always taking the longer answer: right on 66.7 % "
        "against 66.7 % of 60 pairs (difference +0.0 points, 95 % interval -6.0 to +6.0)"
    )


def test_one_that_beats_it_is_told_and_not_warned_of() -> None:
    found = quality(pairs(40, right=36, longer=20))
    assert warning(found) is found["warning"] is None
    assert str(verdict(found)).startswith("the reward model beats always taking the longer answer")


def test_one_prompt_shows_nothing_and_no_pairs_have_no_verdict() -> None:
    found = quality([pair(0, right=True, longer=False)])
    assert found["beats_length"]["state"] == "not shown"
    assert quality([])["beats_length"] is quality([])["warning"] is verdict(quality([])) is None


def test_pairs_that_repeat_each_other_do_not_narrow_the_interval() -> None:
    once = beats_length(pairs(40, right=28, longer=22))
    thrice = beats_length([p for p in pairs(40, right=28, longer=22) for _ in range(3)])
    assert once is not None
    assert thrice is not None
    assert once["ci95"] == pytest.approx(thrice["ci95"], abs=0.02)


@pytest.mark.parametrize(("right", "longer"), [(0.7, 0.6), (0.6, 0.5), (0.5, 0.5)])
def test_the_interval_covers_on_clustered_pairs(right: float, longer: float) -> None:
    # 60 prompts of four pairs that share a third of what decides them. Where both rules are alike
    # good, the better one of a sample looks better than it is.
    generator, truth, covered, draws = np.random.default_rng(1), right - longer, 0, 150
    for _ in range(draws):
        own = generator.normal(size=(60, 4, 2)) * (2 / 3) ** 0.5
        shared = generator.normal(size=(60, 1, 2)) * (1 / 3) ** 0.5
        below = (own + shared) < [_normal_quantile(right), _normal_quantile(longer)]
        rows = [
            pair(prompt, right=bool(below[prompt, k, 0]), longer=bool(below[prompt, k, 1]))
            for prompt in range(60)
            for k in range(4)
        ]
        found = beats_length(rows)
        assert found is not None
        covered += found["ci95"][0] <= truth <= found["ci95"][1]
    # 150 draws at .95 fall below .90 once in 200 times; the seed is fixed.
    assert covered / draws > 0.9


def _normal_quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)
