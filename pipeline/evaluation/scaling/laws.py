"""Two laws of how the loss falls with parameters N and tokens D, and their fit to runs.

- Chinchilla's, L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2);
- Kaplan's, L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (Kaplan et al. 2020, equation
  1.5), which has one exponent each and no floor.

Both are fitted on log L, as log-sum-exp, by the *sum* over runs of Huber losses with delta 1e-3
(Hoffmann et al. 2022, equation 3) from many starts by L-BFGS. That sum is about 1e-3 for hundreds
of runs, and L-BFGS-B stops where a step gains less than `ftol` of max(1, value): with the mean,
smaller still, the published fit stopped before its minimum (Besiroglu et al. 2024). So the sum is
taken in units of delta squared here, some hundreds, and the stop is close to rounding.

Departure: of Chinchilla's five coefficients three enter linearly once the exponents are chosen, so
the starts are a grid over the two exponents, each with its least squares of the other three.

Shapes: P runs, K coefficients of a law, S starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

Floats = NDArray[np.float64]

DELTA = 1e-3
"""Of log L, from where on an error counts by its size instead of its square."""
EXPONENTS = np.geomspace(0.03, 2.0, 14)
"""Of the grid of starts, for each of two exponents."""
LEAST_EXPONENT, MOST_EXPONENT = 1e-4, 5.0
"""An exponent at one of these ends is one that the runs don't tell."""
REFINED = 16
"""Starts, the best of the grid, from which L-BFGS goes down."""
_LOWEST_E = -12.0
"""Of log E less the mean log L: a floor of 6e-6 of the loss is none."""


class Runs(NamedTuple):
    """Runs as the laws take them: natural logarithms, shapes (P,)."""

    log_n: Floats
    log_d: Floats
    log_loss: Floats


class Law(Protocol):
    """A law whose coefficients have been found."""

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Return the loss in nats a token, of numbers or arrays."""


class Form(Protocol):
    """The shape of a law; coefficients theta_K are those of runs centred at 0."""

    def log_loss(self, theta_K: Floats, runs: Runs) -> tuple[Floats, Floats]:
        """Return log L (P,) and its derivatives by each coefficient (K, P)."""

    def starts(self, runs: Runs) -> list[Floats]:
        """Return where to begin."""

    def bounds(self, runs: Runs) -> list[tuple[float | None, float | None]]:
        """Return the least and most of each coefficient."""


@dataclass(frozen=True)
class Chinchilla:
    """L = E + A / N^alpha + B / D^beta."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Return the loss in nats a token."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    @property
    def size_exponent(self) -> float:
        """The a of N ~ C^a at the lowest loss for a budget of FLOPs; D ~ C^(1 - a)."""
        return self.beta / (self.alpha + self.beta)

    def best_size(self, product: Any) -> Any:
        """Return the N with the lowest loss where N D is given (Hoffmann et al. 2022, eq. 4)."""
        total = self.alpha + self.beta
        scale = np.log(self.alpha * self.A / (self.beta * self.B)) / total
        with np.errstate(over="ignore"):  # where the runs don't tell an exponent
            return np.exp(scale + self.size_exponent * np.log(product))


@dataclass(frozen=True)
class Kaplan:
    """L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D, by the logarithms of N_c and D_c.

    They are far beyond any run, and where the runs hardly tell an exponent, beyond all floats.
    """

    log_N_c: float
    log_D_c: float
    alpha_N: float
    alpha_D: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Return the loss in nats a token."""
        by_size = (self.log_N_c - np.log(parameters)) * self.alpha_N / self.alpha_D
        return np.exp(self.alpha_D * np.logaddexp(by_size, self.log_D_c - np.log(tokens)))

    @property
    def size_exponent(self) -> float:
        """The a of N ~ C^a at the lowest loss for a budget of FLOPs."""
        return self.alpha_D / (self.alpha_N + self.alpha_D)


class ChinchillaForm:
    """theta = log A, log B, log E, alpha, beta."""

    def log_loss(self, theta_K: Floats, runs: Runs) -> tuple[Floats, Floats]:
        """Return log L = log-sum-exp of the three terms, and its derivatives."""
        a, b, e, alpha, beta = theta_K
        terms_3P = np.stack(
            [a - alpha * runs.log_n, b - beta * runs.log_d, np.full_like(runs.log_n, e)]
        )
        top_P = terms_3P.max(axis=0)
        parts_3P = np.exp(terms_3P - top_P)
        sums_P = parts_3P.sum(axis=0)
        share_3P = parts_3P / sums_P  # of each term in the loss
        slopes_2P = -share_3P[:2] * np.stack([runs.log_n, runs.log_d])
        return top_P + np.log(sums_P), np.concatenate([share_3P, slopes_2P])

    def starts(self, runs: Runs) -> list[Floats]:
        """Return a grid over the exponents, the rest by least squares of L / its own size."""
        loss_P, found = np.exp(runs.log_loss), []
        for alpha, beta in product(EXPONENTS, repeat=2):
            terms = [np.exp(-alpha * runs.log_n), np.exp(-beta * runs.log_d), np.ones_like(loss_P)]
            found.append(np.array([*_log_linear(terms, loss_P), alpha, beta]))
        return found

    def bounds(self, runs: Runs) -> list[tuple[float | None, float | None]]:
        """Return bounds; E is no larger than the largest loss."""
        lowest = float(runs.log_loss.mean()) + _LOWEST_E
        exponent = (LEAST_EXPONENT, MOST_EXPONENT)
        return [
            (None, None),
            (None, None),
            (lowest, float(runs.log_loss.max())),
            exponent,
            exponent,
        ]

    def law(self, theta_K: Floats, center: tuple[float, float]) -> Chinchilla:
        """Return the law of coefficients that were found on centred runs."""
        a, b, e, alpha, beta = map(float, theta_K)
        log_a, log_b = a + alpha * center[0], b + beta * center[1]
        return Chinchilla(float(np.exp(log_a)), float(np.exp(log_b)), float(np.exp(e)), alpha, beta)


class KaplanForm:
    """theta = log of N's term, its exponent alpha_N / alpha_D, log D_c, alpha_D."""

    def log_loss(self, theta_K: Floats, runs: Runs) -> tuple[Floats, Floats]:
        """Return log L = alpha_D times the log-sum-exp of two terms, and its derivatives."""
        a, ratio, d, alpha_d = theta_K
        terms_2P = np.stack([a - ratio * runs.log_n, d - runs.log_d])
        total_P = np.logaddexp(*terms_2P)
        share_2P = alpha_d * np.exp(terms_2P - total_P)
        slopes = [share_2P[0], -share_2P[0] * runs.log_n, share_2P[1], total_P]
        return alpha_d * total_P, np.stack(slopes)

    def starts(self, runs: Runs) -> list[Floats]:
        """Return a grid over ratio and exponent, the rest by least squares of L^(1 / alpha_D)."""
        found = []
        for ratio, alpha_d in product(np.geomspace(0.2, 5, 12), np.geomspace(0.02, 1, 12)):
            terms = [np.exp(-ratio * runs.log_n), np.exp(-runs.log_d)]
            a, d = _log_linear(terms, np.exp(np.clip(runs.log_loss / alpha_d, -300, 300)))
            found.append(np.array([a, ratio, d, alpha_d]))
        return found

    def bounds(self, runs: Runs) -> list[tuple[float | None, float | None]]:
        """Return bounds; a law with an exponent of 0 has no N_c or D_c."""
        return [(None, None), (1e-3, 1e3), (None, None), (1e-3, MOST_EXPONENT)]

    def law(self, theta_K: Floats, center: tuple[float, float]) -> Kaplan:
        """Return the law of coefficients that were found on centred runs."""
        a, ratio, d, alpha_d = map(float, theta_K)
        return Kaplan(a / ratio + center[0], d + center[1], ratio * alpha_d, alpha_d)


def _log_linear(terms: Sequence[Floats], values_P: Floats) -> Floats:
    """Return the logs of the factors of the terms that sum up to the values, relative errors even.

    None is below a thousandth of the least value, so that it has a logarithm and can grow again.
    """
    linear, _ = nnls(np.stack(terms, axis=1) / values_P[:, None], np.ones_like(values_P))
    logs: Floats = np.log(np.maximum(linear, 1e-3 * values_P.min()))
    return logs


def centered(runs: Runs) -> tuple[Runs, tuple[float, float]]:
    """Return the runs with mean log N and log D of 0, and these means.

    About 0 a coefficient and its exponent are nearly independent, and L-BFGS converges in some
    tens of steps instead of thousands.
    """
    middle = float(runs.log_n.mean()), float(runs.log_d.mean())
    return Runs(runs.log_n - middle[0], runs.log_d - middle[1], runs.log_loss), middle


def objective(theta_K: Floats, form: Form, runs: Runs, weights_P: Floats) -> tuple[float, Floats]:
    """Return the sum of Huber losses in units of delta squared, and its gradient (K,)."""
    fitted_P, slopes_KP = form.log_loss(theta_K, runs)
    z_P = (fitted_P - runs.log_loss) / DELTA
    clipped_P = np.clip(z_P, -1.0, 1.0)  # the derivative of the Huber loss
    value = float(weights_P @ (clipped_P * (z_P - 0.5 * clipped_P)))
    return value, slopes_KP @ (weights_P * clipped_P) / DELTA


def descend(
    starts: Sequence[Floats], form: Form, runs: Runs, weights_P: Floats, *, stop: float = 1e-13
) -> list[tuple[float, Floats]]:
    """Return the value and the coefficients that L-BFGS ends at from each start, the best first.

    Args:
        starts: coefficients to begin at.
        form: the law.
        runs: centred ones.
        weights_P: how often each run counts.
        stop: where a step gains less than this share of the value.
    """
    bounds = form.bounds(runs)
    ends = []
    for start in starts:
        found = minimize(
            objective,
            start,
            args=(form, runs, weights_P),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 500, "maxcor": 20, "ftol": stop, "gtol": 1e-6},
        )
        ends.append((float(found.fun), found.x))
    return sorted(ends, key=lambda end: end[0])


def minima(form: Form, runs: Runs) -> list[Floats]:
    """Return the coefficients of the best minima of centred runs, up to three that differ."""
    ones_P = np.ones_like(runs.log_loss)
    ranked = sorted(form.starts(runs), key=lambda theta: objective(theta, form, runs, ones_P)[0])
    different: list[Floats] = []
    for _, theta in descend(ranked[:REFINED], form, runs, ones_P):
        if all(np.abs(theta - other).max() > 1e-2 for other in different):
            different.append(theta)
    return different[:3]


def resampled(
    form: Form, runs: Runs, starts: Sequence[Floats], *, resamples: int, seed: int
) -> list[Floats]:
    """Return the coefficients of runs drawn anew, each refitted from the minima of all runs."""
    generator = np.random.default_rng(seed)
    count = len(runs.log_loss)
    drawn_RP = generator.multinomial(count, np.full(count, 1 / count), size=resamples) * 1.0
    return [descend(starts, form, runs, row_P, stop=1e-9)[0][1] for row_P in drawn_RP]
