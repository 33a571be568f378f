"""Intervals against values worked by hand, and properties that hold for any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.intervals import (
    bootstrap_clusters,
    clustered_figure,
    clustered_outcomes,
    clustered_ratio,
    clustered_share,
    drawn_clusters,
    effective_score,
    mean_interval,
    mean_or_share,
    over_seeds,
    paired_difference,
    paired_outcomes,
    paired_score,
    wilson,
)

HUNDREDTHS = st.integers(-10_000, 10_000).map(lambda x: x / 100)
NUMBERS = st.lists(HUNDREDTHS, min_size=1, max_size=20)
"""Those that differ still do when all are moved."""


def test_wilson_of_eight_in_ten() -> None:
    # z = 1.959964: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.716743, half width 0.226577.
    found = wilson(8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.490162, abs=1e-5)
    assert found.high == pytest.approx(0.943318, abs=1e-5)
    assert found.n == 10


def test_wilson_has_a_width_where_all_or_none_fulfil() -> None:
    # At 0 of n the upper end is z^2 / (n + z^2).
    assert wilson(0, 10).high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert wilson(10, 10).low == pytest.approx(10 / 13.841459, abs=1e-6)
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0


def test_wilson_of_nothing_is_no_number() -> None:
    assert wilson(0, 0) == (None, None, None, 0)
    assert wilson(0, 0).ci95 is None


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_holds_its_share_within_zero_and_one(n: int, share: float) -> None:
    successes = round(share * n)
    found = wilson(successes, n)
    assert 0 <= found.low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= found.high <= 1


def test_the_mean_of_a_fair_coin_has_the_normal_interval() -> None:
    # 500 zeros and 500 ones: the mean's deviation is 0.5 / sqrt(999) = 0.01582.
    found = mean_interval([0.0, 1.0] * 500)
    assert found.value == 0.5
    assert found.ci95 == pytest.approx([0.5 - 1.9623 * 0.01582, 0.5 + 1.9623 * 0.01582], abs=1e-5)


def test_the_mean_of_one_value_is_that_value() -> None:
    assert mean_interval([2.5]) == (2.5, 2.5, 2.5, 1)
    assert mean_interval([2.5, 2.5, 2.5]) == (2.5, 2.5, 2.5, 3)


def test_the_mean_of_nothing_is_no_number() -> None:
    assert mean_interval([]) == (None, None, None, 0)


def test_the_interval_of_skewed_values_reaches_further_to_their_tail() -> None:
    # Hall's cubic, worked by hand: the mean is 5, the variance 280 / 6, and the skewness
    # 3150 / 6 / 46.667^1.5 = 1.647, which counts as sqrt(6) / 2.5706 = 0.9529 at most; the upper
    # end would be more than twice as far away as Student's.
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 20.0]
    found = mean_interval(values)
    assert found.value == 5
    root, t, g = np.sqrt(6), 2.5706, 0.9529
    below = 3 * root / g * (np.cbrt(1 + g * (t / root - g / 36)) - 1)
    error = np.sqrt(280 / 6 / 5)
    assert found.ci95 == pytest.approx([5 - below * error, 5 + 2 * t * error], abs=1e-3)
    turned = mean_interval([-v for v in values])
    assert turned.ci95 == pytest.approx([-found.high, -found.low])


@given(values=NUMBERS, shift=HUNDREDTHS)
def test_a_shift_moves_the_interval_with_the_mean(values: list[float], shift: float) -> None:
    before = mean_interval(values)
    after = mean_interval([v + shift for v in values])
    for old, new in zip(before[:3], after[:3], strict=True):
        assert new == pytest.approx(old + shift, abs=1e-9)


def test_pairs_remove_what_both_share() -> None:
    # Each b is 1 below its a, whatever the prompt: no spread is left.
    a = [1.0, 50.0, -7.0]
    assert paired_difference(a, [v - 1 for v in a], resamples=50, seed=0) == (1.0, 1.0, 1.0, 3)


def test_pairs_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1.0, 2.0], [1.0], resamples=5, seed=0)


def test_prompts_are_drawn_whole():
    # Ten prompts with 100 equal answers each are ten pieces of evidence, not a thousand.
    few = np.array([[100.0, 100.0]] * 5 + [[0.0, 100.0]] * 5)
    many = np.repeat(few / 100, 100, axis=0)

    def ratio(sums):
        return sums[:, 0] / sums[:, 1]

    wide = bootstrap_clusters(few, statistic=ratio, resamples=2000, seed=0)
    narrow = bootstrap_clusters(many, statistic=ratio, resamples=2000, seed=0)
    assert wide.value == narrow.value == 0.5
    assert (wide.n, narrow.n) == (10, 1000)
    # Standard errors 0.5 / sqrt(9), with Student's quantile of 9, and 0.5 / sqrt(1000).
    assert wide.high - wide.low == pytest.approx(2 * 2.262 * 0.167, rel=0.1)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 0.0158, rel=0.1)


def test_a_smooth_figure_of_sums_has_the_interval_of_its_linear_form():
    rng = np.random.default_rng(0)
    parts = np.stack([rng.poisson(2, 40), rng.poisson(3, 40) + 1], axis=1).astype(np.float64)

    def ratio(sums):
        return sums[:, 0] / sums[:, 1]

    found, expected = clustered_figure(parts, statistic=ratio), clustered_ratio(parts)
    assert found[:3] == pytest.approx(expected[:3], abs=1e-4) and found.n == 40
    assert clustered_figure(parts[:1], statistic=ratio)[1:] == (None, None, 1)


def test_a_statistic_that_is_not_defined_has_no_ends():
    def undefined(sums):
        return np.where(sums[:, 0] > 5, sums[:, 0], np.nan)

    found = bootstrap_clusters(np.array([[1.0], [2.0]]), statistic=undefined, resamples=9, seed=0)
    assert found == (None, None, None, 2)
    # 1 + 5 is defined, most draws are: 1 + 1 is not.
    found = bootstrap_clusters(np.array([[1.0], [5.0]]), statistic=undefined, resamples=99, seed=0)
    assert found.value == 6
    assert found.high == 10
    one = bootstrap_clusters(np.array([[7.0]]), statistic=undefined, resamples=9, seed=0)
    assert one == (7.0, None, None, 1)
    empty = bootstrap_clusters(np.zeros((0, 1)), statistic=undefined, resamples=9, seed=0)
    assert empty.n == 0


def test_the_score_interval_of_paired_outcomes_by_hand() -> None:
    # All 20 tie: n d^2 = z^2 d (1 - d), so the ends are z^2 / (n + z^2) off zero.
    even = paired_score(0, 0, 20)
    assert even.value == 0.0
    assert even.high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
    assert even.low == pytest.approx(-even.high, abs=1e-9)
    # Published for 21 children of whom 1 and 7 changed (Fagerland et al., 2014, Bentur's data).
    found = paired_score(1, 7, 21)
    assert found.value == pytest.approx(-6 / 21)
    assert found.low == pytest.approx(-0.517, abs=5e-4)
    assert found.high == pytest.approx(-0.026, abs=5e-4)
    assert paired_score(0, 0, 0) == (None, None, None, 0)


@given(n=st.integers(1, 400), share=st.floats(0, 1))
def test_without_ties_the_score_interval_is_wilsons(n: int, share: float) -> None:
    wins = round(share * n)
    found, usual = paired_score(wins, n - wins, n), wilson(wins, n)
    assert (1 + found.low) / 2 == pytest.approx(usual.low, abs=1e-7)
    assert (1 + found.high) / 2 == pytest.approx(usual.high, abs=1e-7)


@pytest.mark.parametrize("ties", [0.0, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("won", [0.5, 0.7, 0.98])
@pytest.mark.parametrize("n", [10, 50, 200, 1000])
def test_the_true_difference_lies_within_19_of_20_intervals(
    n: int, won: float, ties: float
) -> None:
    wins, losses = (1 - ties) * won, (1 - ties) * (1 - won)
    draws = np.random.default_rng(7).multinomial(n, [wins, losses, ties], size=1500)
    kinds, often = np.unique(draws[:, :2], axis=0, return_counts=True)
    held = sum(
        count * (found.low - 1e-9 <= wins - losses <= found.high + 1e-9)
        for (won_n, lost_n), count in zip(kinds.tolist(), often.tolist(), strict=True)
        for found in [paired_outcomes(won_n, lost_n, n, resamples=400, seed=won_n)]
    )
    # A score interval of few counts swings around .95; the standard error of the check is .006.
    assert held / 1500 >= 0.915
    # Nor is it bought with width: not wider than the truth's own spread, but where counts are few.
    spread = np.sqrt((wins + losses - (wins - losses) ** 2) / n)
    typical = paired_outcomes(round(wins * n), round(losses * n), n, resamples=400, seed=0)
    assert typical.high - typical.low <= 2 * 1.96 * spread + 8 / n


def test_a_mean_over_seeds_has_students_interval() -> None:
    # Deviations -1, 0, 1 of three: the error is 1 / sqrt(3), Student's quantile of 2 is 4.3027.
    assert over_seeds([1.0, 2.0, 3.0])[:3] == pytest.approx([2, 2 - 2.4841, 2 + 2.4841], abs=1e-4)
    assert over_seeds([2.0]) == (2.0, None, None, 1)
    assert over_seeds([]) == (None, None, None, 0)


def test_marks_that_mostly_agree_are_paired_outcomes() -> None:
    # 3 of 100 prompts differ, all one way: drawing prompts anew never loses one.
    a, b = [1.0] * 53 + [0.0] * 47, [1.0] * 50 + [0.0] * 50
    found = paired_difference(a, b, resamples=500, seed=0)
    assert found == paired_score(3, 0, 100)
    assert found.value == 0.03
    assert found.low < 0 < found.high


def test_the_mean_of_zeros_and_ones_is_a_share() -> None:
    assert mean_or_share([0.0] * 9) == wilson(0, 9)
    assert mean_or_share([0.0, 1.0, 1.0]) == wilson(2, 3)
    values = [0.2, 0.3, 0.4, 0.6]
    assert mean_or_share(values) == mean_interval(values)


def test_outcomes_of_prompts_asked_once_are_paired_outcomes() -> None:
    # With one outcome a prompt the effective number is theirs, up to the n - 1 of a variance.
    found = clustered_outcomes([1.0] * 20 + [-1.0] * 10 + [0.0] * 70, range(100))
    plain = paired_score(20, 10, 100)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(plain.low, abs=2e-3)
    assert found.high == pytest.approx(plain.high, abs=2e-3)
    assert clustered_outcomes([0.0] * 20, range(20)) == paired_score(0, 0, 20)
    assert clustered_outcomes([], []) == (None, None, None, 0)


def test_outcomes_said_thrice_are_said_once() -> None:
    outcomes = [1.0] * 20 + [-1.0] * 10 + [0.0] * 70
    once = clustered_outcomes(outcomes, range(100))
    thrice = clustered_outcomes(outcomes * 3, [*range(100)] * 3)
    assert thrice.value == pytest.approx(once.value)
    # Student's quantile of 99 degrees of freedom for the normal one.
    assert (thrice.high - thrice.low) / (once.high - once.low) == pytest.approx(1.012, abs=3e-3)
    # Nothing varies: as many prompts, not as many outcomes.
    even = clustered_outcomes([0.0] * 60, [*range(20)] * 3)
    assert even[:3] == pytest.approx(paired_score(0, 0, 20)[:3])


def test_a_known_variance_is_a_number_of_independent_prompts() -> None:
    # 40 of 200 decided, 30 won: the variance of independent prompts is (.2 - .1^2) / 200.
    given = {"clusters": 200, "most": 200, "least": 200}
    plain = paired_score(30, 10, 200)
    assert effective_score(0.1, decided=0.2, variance=0.19 / 200, **given) == pytest.approx(
        plain[1:3]
    )
    quarter = effective_score(0.1, decided=0.2, variance=4 * 0.19 / 200, **given)
    assert quarter == pytest.approx(paired_score(7.5, 2.5, 50)[1:3])
    # More than all outcomes they can't tell.
    assert effective_score(0.1, decided=0.2, variance=1e-9, **given) == pytest.approx(plain[1:3])


def test_clusters_are_drawn_as_often_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = {"resamples": 30, "seed": 4, "width": 10}
    whole = np.concatenate([*drawn_clusters(7, **draws)])
    assert whole.shape == (30, 7)
    assert (whole.sum(axis=1) == 7).all()
    monkeypatch.setattr("data.intervals._CACHED", 40)
    parts = [*drawn_clusters(7, **draws)]
    assert [len(part) for part in parts] == [4] * 7 + [2]
    assert (np.concatenate(parts) == whole).all()


def test_few_values_have_students_width() -> None:
    # The mean of ten standard scores: its deviation with n - 1 is 1 / sqrt(10).
    values = np.array([-1.5, -1.1, -0.8, -0.4, -0.1, 0.2, 0.3, 0.7, 1.1, 1.6])
    values = (values - values.mean()) / values.std(ddof=1)
    found = mean_interval(values.tolist())
    assert found.high - found.low == pytest.approx(2 * 2.262 / np.sqrt(10), rel=0.01)


def test_a_ratio_of_sums_is_a_mean_where_all_count_alike() -> None:
    values = [0.3, 1.0, 2.2, 0.9, 4.0, 1.1, 0.2, 1.4, 0.8, 2.9, 0.1, 1.7]
    plain = mean_interval(values)
    assert clustered_ratio(np.array([[v, 1.0] for v in values])) == pytest.approx(plain)
    # Ten texts of two sizes, all at two bits: nothing varies.
    parts = np.array([[2.0, 1.0], [8.0, 4.0]] * 5)
    assert clustered_ratio(parts) == (2.0, 2.0, 2.0, 10)
    assert clustered_ratio(np.zeros((0, 2))) == (None, None, None, 0)
    assert clustered_ratio(np.array([[3.0, 2.0]])) == (1.5, None, None, 1)
    assert clustered_ratio(np.array([[0.0, 0.0]] * 4)) == (None, None, None, 4)
    # No share lies beyond what single prompts have, 0 and 1, nor do its ends.
    rare = clustered_ratio(np.array([[4.0, 4.0], *[[0.0, 4.0]] * 19]))
    assert 0 <= rare.low < rare.value == 0.05 < rare.high < 0.3


def test_the_mean_of_few_values_among_ties_is_not_certain() -> None:
    # Of marks it is Tango's interval; other values have their own scale and origin.
    marks = [1.0] * 3 + [-1.0] + [0.0] * 96
    plain = paired_score(3, 1, 100)
    assert mean_interval(marks) == pytest.approx(plain)
    moved = mean_interval([7 + 2 * x for x in marks])
    assert moved[:3] == pytest.approx([7 + 2 * x for x in plain[:3]])
    # Three gains of unlike size do not exclude that there is none.
    found = mean_interval([0.9, 0.5, 0.2] + [0.0] * 97)
    assert found.value == pytest.approx(0.016)
    assert found.low < 0 < 0.03 < found.high
    # Scores from 0 to 1 have no mean below 0.
    assert mean_or_share([0.9, 0.5, 0.2] + [0.0] * 97).low == 0


def test_a_share_of_counts_is_wilsons_of_as_many_as_its_variance_tells() -> None:
    # Ten prompts of one each, 8 fulfil: the variance is p(1-p)/10 * 10/9, that of nine.
    found = clustered_share(np.array([[1.0, 1.0]] * 8 + [[0.0, 1.0]] * 2))
    nine = wilson(7.2, 9)
    assert found.value == 0.8
    # Student's quantile of 9 for the normal one.
    ratio = (found.high - found.low) / (nine.high - nine.low)
    assert 1.05 < ratio < 2.262 / 1.960
    # Unanimous prompts are as many trials as prompts, however much was counted of each.
    whole = clustered_share(np.array([[7.0, 7.0]] * 3))
    assert (whole.value, whole.low, whole.high) == pytest.approx(wilson(3, 3)[:3])
    assert clustered_share(np.zeros((0, 2))) == (None, None, None, 0)
