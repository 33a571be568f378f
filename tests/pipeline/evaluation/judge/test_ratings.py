"""Bradley-Terry ratings: against choix, at the edges, and their intervals."""

from __future__ import annotations

import itertools
import math

import choix
import numpy as np
import pytest
from scipy.special import expit, logit

from pipeline.evaluation.judge.logistic import PRIOR_DEVIATION
from pipeline.evaluation.judge.ratings import Comparison, bradley_terry, elo
from pipeline.evaluation.judge.winrates import rate

DRAW = {"resamples": 200, "seed": 0}
NAMES = ["base", "sft", "reward", "ppo", "best"]


def games(ratings, prompts, *, ties=0.0, seed=0):
    """Return what checkpoints of these ratings would be judged, each two on each prompt."""
    rng = np.random.default_rng(seed)
    return [
        Comparison(NAMES[a], NAMES[b], outcome, prompt)
        for prompt in range(prompts)
        for a, b in itertools.permutations(range(len(ratings)), 2)
        if (a + b + prompt) % 2 == (a < b)  # either may stand first
        for tied in [rng.random() < ties]
        for won in [float(rng.random() < expit(ratings[a] - ratings[b]))]
        for outcome in [0.5 if tied else won]
    ]


def peers(comparisons, names=NAMES):
    """Return choix's ratings over the first; a tie is a win for both at half the weight."""
    places = {name: place for place, name in enumerate(names)}
    data = []
    for first, second, outcome, _ in comparisons:
        a, b = places[first], places[second]
        data += {1.0: [(a, b)] * 2, 0.5: [(a, b), (b, a)], 0.0: [(b, a)] * 2}[outcome]
    # Its penalty is alpha times the sum of squares, ours half of it over the prior's variance.
    found = choix.opt_pairwise(len(names), data, alpha=2 / 2 / PRIOR_DEVIATION**2, tol=1e-9)
    return found - found[0]


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_ratings_are_those_of_choix(ties: float) -> None:
    comparisons = games([0.0, 0.5, -0.3, 1.2, 3.0], 40, ties=ties)
    found = bradley_terry(NAMES, comparisons, **DRAW)
    assert [e.value for e in found.values()] == pytest.approx(peers(comparisons), abs=1e-5)


def test_an_undefeated_and_a_never_winning_one_are_finite_and_in_order() -> None:
    comparisons = games([-60.0, 0.0, 0.4, 60.0], 30)
    names = NAMES[:4]
    found = bradley_terry(names, comparisons, **DRAW)
    values = [float(e.value) for e in found.values() if e.value is not None]
    assert values == pytest.approx(peers(comparisons, names), abs=1e-4)
    assert sorted(values) == values
    for value, low, high, _ in list(found.values())[1:]:
        assert 0 < low <= value <= high < math.inf


def test_of_two_a_rating_is_the_win_rates_log_odds() -> None:
    comparisons = [
        Comparison("ppo", "sft", won, p) for p, won in enumerate([1.0] * 9 + [0.0] * 3 + [0.5] * 28)
    ]
    found = bradley_terry(["sft", "ppo"], comparisons, resamples=4000, seed=0)
    assert found["sft"] == (0.0, None, None, 40)
    plain = rate(9, 28, 3, resamples=10, seed=0).rate
    assert found["ppo"].value == pytest.approx(logit(plain.value), abs=1e-3)
    assert expit(found["ppo"].low) == pytest.approx(plain.low, abs=0.01)
    assert expit(found["ppo"].high) == pytest.approx(plain.high, abs=0.01)


def test_elo_is_the_rating_in_other_units() -> None:
    assert elo(0.0) == 1000
    assert elo(math.log(10)) == pytest.approx(1400)
    assert elo(-math.log(10) / 2) == pytest.approx(800)


def test_who_was_never_compared_with_the_anchor_has_no_rating() -> None:
    comparisons = [Comparison("sft", "base", 1.0, p) for p in range(9)]
    comparisons += [Comparison("ppo", "best", 0.0, p) for p in range(9)]
    found = bradley_terry(NAMES, comparisons, **DRAW)
    assert found["sft"].value > 0
    assert {name for name, e in found.items() if e.value is None} == {"reward", "ppo", "best"}
    # One game ties them in, and a chain is enough.
    found = bradley_terry(NAMES, [*comparisons, Comparison("ppo", "sft", 1.0, 0)], **DRAW)
    assert found["best"].value > found["ppo"].value > found["sft"].value


def test_nothing_compared_nothing_rated() -> None:
    found = bradley_terry(["a", "b"], [], **DRAW)
    assert found == {"a": (0.0, None, None, 0), "b": (None, None, None, 0)}


def test_who_stands_first_in_a_comparison_changes_nothing() -> None:
    comparisons = games([0.0, 0.5, 1.0], 20, ties=0.2)
    turned = [Comparison(c.second, c.first, 1 - c.outcome, c.prompt) for c in comparisons]
    assert bradley_terry(NAMES[:3], comparisons, **DRAW) == bradley_terry(NAMES[:3], turned, **DRAW)


def test_prompts_are_drawn_whole() -> None:
    comparisons = games([0.0, 0.5, 1.0], 40)
    once = bradley_terry(NAMES[:3], comparisons, **DRAW)["reward"]
    thrice = bradley_terry(NAMES[:3], comparisons * 3, **DRAW)["reward"]
    assert thrice.value == pytest.approx(once.value, abs=0.01)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.1)
