"""Win rates: counts by hand, ties, and the interval over prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.judge.winrates import outcomes, rate, win_rate

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30)


def test_counts_and_rate_by_hand() -> None:
    won = win_rate(outcomes([1.0, 0.5, 0.2, 0.9], [0.0, 0.5, 0.8, 0.9]), resamples=500, seed=0)
    assert (won.wins, won.ties, won.losses) == (1, 2, 1)
    assert won.rate.value == 0.5  # (1 + 2 / 2) / 4
    assert won.rate.n == 4


def test_scores_that_differ_by_rounding_tie() -> None:
    assert outcomes([0.3, 0.3], [0.3 + 1e-7, 0.3 - 1e-7]) == [0.5, 0.5]


def test_interval_is_near_the_normal_one() -> None:
    # 70 wins in 100: deviation sqrt(0.7 * 0.3 / 100) = 0.0458.
    found = rate(70, 0, 30, resamples=20000, seed=0).rate
    assert found.low == pytest.approx(0.7 - 1.96 * 0.0458, abs=0.012)
    assert found.high == pytest.approx(0.7 + 1.96 * 0.0458, abs=0.012)


def test_ties_narrow_the_interval() -> None:
    with_ties = rate(30, 60, 10, resamples=4000, seed=0).rate
    without = rate(60, 0, 40, resamples=4000, seed=0).rate
    assert with_ties.value == without.value == 0.6
    assert with_ties.high - with_ties.low < without.high - without.low


def test_winning_everything_is_not_called_certain() -> None:
    found = rate(10, 0, 0, resamples=100, seed=0).rate
    assert found.value == 1.0
    assert found.low == pytest.approx(10 / 13.841459, abs=1e-6)  # Wilson's


def test_no_prompts_no_rate() -> None:
    won = win_rate([], resamples=10, seed=0)
    assert won == (0, 0, 0, (None, None, None, 0))


@given(data=st.data(), a=SCORES)
def test_the_other_side_has_the_rest(data: st.DataObject, a: list[float]) -> None:
    b = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(a), max_size=len(a)))
    one, other = (win_rate(outcomes(x, y), resamples=50, seed=0) for x, y in ((a, b), (b, a)))
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.rate.value + other.rate.value == pytest.approx(1)
    assert one.rate.low <= one.rate.value + 1e-9
    assert one.rate.high >= one.rate.value - 1e-9


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 and 2"):
        outcomes([1.0], [1.0, 2.0])


def test_a_few_wins_among_ties_do_not_make_a_certain_winner() -> None:
    # 3 wins and 97 ties: drawn anew, no prompt is ever lost, and the bootstrap would start at .5.
    found = rate(3, 97, 0, resamples=4000, seed=0).rate
    assert found.value == 0.515
    assert found.low < 0.5 < found.high
    # Nor does the interval become that of 100 prompts without ties, .42 to .61.
    assert found.high - found.low < 0.06


def test_all_ties_leave_a_width_of_their_own() -> None:
    found = rate(0, 20, 0, resamples=50, seed=0).rate
    # z^2 / (n + z^2) on both sides of no difference, halved.
    assert found.high == pytest.approx(0.5 + 3.841459 / 23.841459 / 2, abs=1e-6)
    assert found.low == pytest.approx(1 - found.high)
