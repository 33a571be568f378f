"""The win rate at equal length: by hand, against an optimiser, and where a fit has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from data.intervals import paired_score
from pipeline.evaluation.judge.length_control import length_controlled
from pipeline.evaluation.judge.logistic import PRIOR_DEVIATION, fit_logistic

DRAW = {"resamples": 300, "seed": 0}


def judged(rng, n, *, theta, phi, longer=0.8, ties=0.0):
    """Return outcomes of a judge that likes length by `phi`, the lengths, and a prompt each."""
    lengths = np.round(100 * (longer + rng.normal(size=n)))
    rate = expit(theta + phi * np.tanh(lengths / lengths.std()))
    uniform = rng.random(n)
    won = np.where(
        uniform > 1 - rate + ties / 2, 1.0, np.where(uniform < 1 - rate - ties / 2, 0, 0.5)
    )
    return won.tolist(), lengths.tolist(), list(range(n))


def test_what_length_alone_won_is_taken_off() -> None:
    # Two thirds of the longer answers win, two thirds of the shorter lose, whoever wrote them; one
    # side is the longer one in 120 of 150 pairs.
    lengths = [50.0] * 120 + [-50.0] * 30
    outcomes = [1.0] * 80 + [0.0] * 40 + [1.0] * 10 + [0.0] * 20
    found = length_controlled(outcomes, lengths, range(150), **DRAW)
    assert sum(outcomes) / 150 == 0.6
    assert found.value == pytest.approx(0.5, abs=1e-3)
    assert found.low < 0.45 and found.high > 0.55
    assert found.n == 150


def test_a_length_that_does_not_matter_leaves_the_rate() -> None:
    outcomes = [1.0, 1.0, 0.5, 0.0] * 20
    lengths = [-40.0] * 4 + [40.0] * 4 + [-10.0] * 4 + [10.0] * 4
    found = length_controlled(outcomes, lengths * 5, range(80), **DRAW)
    assert found.value == pytest.approx(0.625, abs=1e-4)


def test_equal_lengths_give_the_win_rate_and_its_interval() -> None:
    outcomes = [1.0] * 8 + [0.0] * 4 + [0.5] * 88
    found = length_controlled(outcomes, [0.0] * 100, range(100), resamples=4000, seed=0)
    plain = paired_score(8, 4, 100)
    assert found.value == pytest.approx(0.52, abs=1e-4)
    assert found.low == pytest.approx((1 + plain.low) / 2, abs=2e-3)
    assert found.high == pytest.approx((1 + plain.high) / 2, abs=2e-3)


def test_all_ties_leave_a_width() -> None:
    found = length_controlled([0.5] * 50, [0.0] * 50, range(50), **DRAW)
    plain = paired_score(0, 0, 50)
    assert found == (0.5, (1 + plain.low) / 2, (1 + plain.high) / 2, 50)
    # Lengths that differ mostly one way tell less of equal ones.
    uneven = length_controlled([0.5] * 50, [30.0, 40.0, 50.0, -5.0, 0.0] * 10, range(50), **DRAW)
    assert uneven.value == 0.5
    assert uneven.high > (1 + plain.high) / 2


@pytest.mark.parametrize("won", [1.0, 0.0])
def test_one_side_that_wins_everything_is_finite_and_not_certain(won: float) -> None:
    found = length_controlled([won] * 30, [-20.0, 0.0, 20.0] * 10, range(30), **DRAW)
    assert found.value == pytest.approx(won, abs=0.003)
    inner = found.low if won else 1 - found.high
    assert 0.8 < inner < 0.9  # Wilson's of 30 in 30 is .886


def test_length_that_decides_everything_is_finite() -> None:
    lengths = [float(x) for x in range(-20, 21)]
    outcomes = [float(np.sign(x) + 1) / 2 for x in lengths]
    found = length_controlled(outcomes, lengths, range(41), **DRAW)
    assert found.value == pytest.approx(0.5, abs=1e-6)
    assert 0 < found.low < 0.5 < found.high < 1


@pytest.mark.parametrize(
    ("outcomes", "lengths"),
    [
        ([], []),
        ([1.0] * 3, [1.0, 0.0, -1.0]),  # too few
        ([1.0, 0.0] * 40, [25.0] * 80),  # always longer by the same
        ([1.0, 0.0] * 40, [500.0, 510.0] * 40),  # always much longer
    ],
)
def test_where_the_pairs_can_not_tell_there_is_no_rate(
    outcomes: list[float], lengths: list[float]
) -> None:
    found = length_controlled(outcomes, lengths, range(len(outcomes)), **DRAW)
    assert found == (None, None, None, len(outcomes))


def test_prompts_are_drawn_whole() -> None:
    rng = np.random.default_rng(1)
    outcomes, lengths, prompts = judged(rng, 40, theta=0.2, phi=0.5)
    once = length_controlled(outcomes, lengths, prompts, **DRAW)
    thrice = length_controlled(outcomes * 3, lengths * 3, prompts * 3, **DRAW)
    assert thrice.value == pytest.approx(once.value, abs=2e-3)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.1)


def test_the_other_side_has_the_rest_and_a_seed_repeats() -> None:
    outcomes, lengths, prompts = judged(np.random.default_rng(2), 60, theta=0.3, phi=0.4, ties=0.3)
    one = length_controlled(outcomes, lengths, prompts, **DRAW)
    other = length_controlled([1 - x for x in outcomes], [-x for x in lengths], prompts, **DRAW)
    assert one == length_controlled(outcomes, lengths, prompts, **DRAW)
    assert one.value + other.value == pytest.approx(1)
    assert one.low + other.high == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("case", range(6))
def test_a_batch_of_fits_is_the_optimisers(case: int) -> None:
    rng = np.random.default_rng(case)
    features = np.stack([np.ones(40), rng.normal(size=40) * 10 ** rng.uniform(-2, 1)], axis=1)
    # Some are separated, where the likelihood alone has no maximum.
    won = (features[:, 1] > 0) * 1.0 if case % 2 else rng.choice([0.0, 0.5, 1.0], size=40)
    counts = rng.integers(0, 4, size=(3, 40)).astype(float)

    def loss(beta, n):
        logits = features @ beta
        return n @ (np.logaddexp(0, logits) - won * logits) + beta @ beta / PRIOR_DEVIATION**2 / 2

    found = fit_logistic(features, counts * won, counts)
    for beta, n in zip(found, counts, strict=True):
        best = minimize(loss, np.zeros(2), args=(n,), method="BFGS", options={"gtol": 1e-9})
        assert loss(beta, n) <= best.fun + 1e-9
        assert beta == pytest.approx(best.x, rel=1e-3, abs=1e-3)
