"""The two laws: planted coefficients come back, and the fit ends at the bottom."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from pipeline.evaluation.scaling.laws import (
    DELTA,
    Chinchilla,
    ChinchillaForm,
    Form,
    Kaplan,
    KaplanForm,
    Law,
    Runs,
    centered,
    minima,
    objective,
    resampled,
)

PUBLISHED = Chinchilla(A=482.01, B=2085.43, E=1.817, alpha=0.348, beta=0.366)
"""Besiroglu et al. 2024."""


def spread(law: Law, errors: np.ndarray, *, seed: int = 0) -> Runs:
    """Return runs with sizes and budgets as far apart as those of Hoffmann et al. 2022."""
    rng, count = np.random.default_rng(seed), len(errors)
    log_n = rng.uniform(np.log(4.4e7), np.log(1.6e10), count)
    log_d = rng.uniform(np.log(6e18), np.log(3e21), count) - np.log(6) - log_n
    return Runs(log_n, log_d, np.log(law.loss(np.exp(log_n), np.exp(log_d))) + errors)


def fitted(runs: Runs) -> Chinchilla:
    centred, center = centered(runs)
    return ChinchillaForm().law(minima(ChinchillaForm(), centred)[0], center)


def test_the_published_law_comes_back_from_points_like_chinchillas() -> None:
    rng = np.random.default_rng(1)
    errors = rng.normal(0, 1e-4, 240)
    errors[:12] += rng.normal(0, 0.1, 12)  # runs that went wrong count by size, not by square
    law = fitted(spread(PUBLISHED, errors))
    for name in ("E", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(PUBLISHED, name), abs=0.002), name


def test_planted_coefficients_come_back_within_5_percent_with_noise() -> None:
    law = fitted(spread(PUBLISHED, np.random.default_rng(2).normal(0, 1e-3, 240)))
    for name in ("A", "B", "E", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(PUBLISHED, name), rel=0.05), name


def test_kaplans_law_comes_back() -> None:
    planted = Kaplan(log_N_c=np.log(8.8e13), log_D_c=np.log(5.4e13), alpha_N=0.076, alpha_D=0.095)
    runs, center = centered(spread(planted, np.zeros(60)))
    law = KaplanForm().law(minima(KaplanForm(), runs)[0], center)
    assert law.alpha_N == pytest.approx(0.076, rel=1e-3)
    assert law.alpha_D == pytest.approx(0.095, rel=1e-3)
    assert np.exp(law.log_N_c) == pytest.approx(8.8e13, rel=0.05)
    # (8.8e13 / 1e9)^0.8 = 9,028; 5.4e13 / 1e10 = 5,400; 14,428^0.095 = 2.4838
    assert planted.loss(1e9, 1e10) == pytest.approx(2.4838, abs=1e-4)


@pytest.mark.parametrize("form", [ChinchillaForm(), KaplanForm()], ids=["Chinchilla", "Kaplan"])
def test_the_gradient_is_that_of_the_objective(form: Form) -> None:
    runs, _ = centered(spread(PUBLISHED, np.random.default_rng(3).normal(0, 5e-3, 30)))
    weights = np.arange(30.0)
    for theta in form.starts(runs)[::37]:
        value = objective(theta, form, runs, weights)[1]
        wrong = check_grad(
            lambda t: objective(t, form, runs, weights)[0],
            lambda t: objective(t, form, runs, weights)[1],
            theta,
        )
        assert wrong < 1e-4 * np.linalg.norm(value)


def test_the_objective_is_the_sum_of_huber_losses() -> None:
    runs = Runs(np.zeros(3), np.zeros(3), np.log(3.0) - np.array([0.0, 0.5, 4.0]) * DELTA)
    # Three terms of 1: L = 3. Huber at 0, half a delta, and 4 deltas: 0, 1/8, 4 - 1/2.
    value, _ = objective(np.array([0.0, 0, 0, 1, 1]), ChinchillaForm(), runs, np.ones(3))
    assert value == pytest.approx(0.125 + 3.5)


def test_the_mean_of_huber_losses_stops_before_the_bottom_and_this_fit_does_not() -> None:
    """Hoffmann et al.'s fit, as Besiroglu et al. explain it: its scale is wrong, not its start."""
    runs = spread(PUBLISHED, np.random.default_rng(4).normal(0, 5e-3, 240))
    form, ones = ChinchillaForm(), np.ones(240)

    def mean(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(theta, form, runs, ones)
        return value * DELTA**2 / 240, gradient * DELTA**2 / 240

    start = np.array([5.0, 10.0, 0.5, 0.5, 0.5])
    stopped = minimize(mean, start, jac=True, method="L-BFGS-B").x
    centred, (n, d) = centered(runs)
    a, b, e, alpha, beta = minima(form, centred)[0]
    ours = np.array([a + alpha * n, b + beta * d, e, alpha, beta])
    assert mean(ours)[0] < 0.9 * mean(stopped)[0]


def test_intervals_hold_what_was_planted_and_narrow_with_the_noise() -> None:
    widths = []
    for noise in (1e-2, 1e-3):
        runs, center = centered(spread(PUBLISHED, np.random.default_rng(5).normal(0, noise, 120)))
        form = ChinchillaForm()
        found = resampled(form, runs, minima(form, runs), resamples=60, seed=0)
        low, high = np.quantile([form.law(t, center).alpha for t in found], [0.005, 0.995])
        assert low < PUBLISHED.alpha < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_the_best_size_for_a_budget_has_the_lowest_loss_of_all() -> None:
    sizes = np.geomspace(1e6, 1e12, 20_001)
    lowest = sizes[np.argmin(PUBLISHED.loss(sizes, 1e20 / sizes))]
    assert PUBLISHED.best_size(1e20) == pytest.approx(lowest, rel=1e-3)
    assert PUBLISHED.size_exponent == pytest.approx(0.366 / 0.714)
