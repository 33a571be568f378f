"""Whether sigmoid(score difference) can be read as a probability, and what scale would make it so.

A pair's confidence is that probability for the completion with the higher score, from 0.5 to 1; a
calibrated model is right as often as it is confident (Guo et al. 2017, On calibration of modern
neural networks). The temperature T of sigmoid(difference / T) is fitted by the log loss, with
Platt's targets (1999) so that it is finite where every pair is right. What it does to pairs is told
of pairs whose prompts it was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from data.intervals import (
    LEVEL,
    Estimate,
    clustered_ratio,
    drawn_clusters,
    students_quantile,
)
from reward.quality.pairs import ScoredPair
from reward.quality.shares import clustered_interval

FOLDS = 5
RESAMPLES = 1000
_GRID_G = np.concatenate([[0.0], np.geomspace(0.01, 100, 401)])
"""1 / T on the scale of the differences; 0 says that all completions are alike likely."""


def calibration(
    pairs: Sequence[ScoredPair], *, bins: int = 5, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return how far the probabilities of pairs are from how often they come true.

    Args:
        pairs: held-out pairs with their scores.
        bins: of the confidence.
        resamples: of the bootstrap over prompts.
        seed: of its draws.

    Returns:
        `ece` (mean distance between confidence and accuracy, weighted by pairs), `log_loss`, their
        intervals, for each filled bin of `reliability` low, high, confidence, accuracy, ci95 and n,
        and `temperature`, see `_temperature`.
    """
    differences_N = np.array([p.better - p.worse for p in pairs], dtype=np.float64)
    prompts = [p.prompt for p in pairs]
    prompt_N = np.unique(prompts, return_inverse=True)[1] if pairs else np.zeros(0, dtype=np.int64)
    ece, log_loss = calibration_errors(
        differences_N, prompt_N, bins=bins, resamples=resamples, seed=seed
    )
    return {
        "ece": ece.value or 0.0,
        "ci95_ece": ece.ci95,
        "log_loss": log_loss.value or 0.0,
        "ci95_log_loss": log_loss.ci95,
        "reliability": _reliability(differences_N, prompts, bins),
        "temperature": _temperature(
            differences_N, prompt_N, bins=bins, resamples=resamples, seed=seed
        ),
    }


def _confidence_and_right(
    differences_N: NDArray[np.float64], bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    confidence_N = 1 / (1 + np.exp(-np.abs(differences_N)))
    right_N = np.where(differences_N == 0, 0.5, differences_N > 0)
    bin_N = np.minimum(bins - 1, (confidence_N - 0.5) * 2 * bins).astype(np.int64)
    return confidence_N, right_N, bin_N


def calibration_errors(
    differences_N: NDArray[np.float64],
    prompt_N: NDArray[np.int64],
    *,
    bins: int,
    resamples: int,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """Return expected calibration error and log loss.

    Args:
        differences_N: score of the better one less that of the worse one, of each pair.
        prompt_N: number of each pair's prompt, from 0.
        bins: of the confidence.
        resamples: of the bootstrap over prompts.
        seed: of its draws.
    """
    if not len(differences_N):
        return (Estimate(None, None, None, 0),) * 2
    confidence_N, right_N, bin_N = _confidence_and_right(differences_N, bins)
    prompts = int(prompt_N.max()) + 1
    # Of each prompt: pairs, log loss, and in each bin how much more was promised than came true.
    parts_PM = np.zeros((prompts, 2 + bins))
    np.add.at(parts_PM[:, 0], prompt_N, 1.0)
    np.add.at(parts_PM[:, 1], prompt_N, np.logaddexp(0, -differences_N))
    np.add.at(parts_PM, (prompt_N, 2 + bin_N), confidence_N - right_N)
    log_loss = clustered_ratio(parts_PM[:, [1, 0]])
    gaps_PM = parts_PM[:, [0, *range(2, 2 + bins)]]
    return calibration_error(gaps_PM, resamples=resamples, seed=seed), log_loss


def calibration_error(parts_PM: NDArray[np.float64], *, resamples: int, seed: int) -> Estimate:
    """Return the expected calibration error with its interval.

    Args:
        parts_PM: of each prompt how much was counted, and by bin of the confidence how much more
            was promised than came true.
        resamples: of the bootstrap over prompts.
        seed: of its draws.

    Noise never takes gaps away, so that draws lie above the figure of the sample, as that lies
    above the truth: percentiles would never hold 0, the error of a calibrated model. The upper end
    is that of the draws without what lifts them above the figure on average, the lower one as far
    below the figure as the draws' upper end is above it, and 0 where gaps as large come of noise
    alone, in one of twenty draws about gaps of 0. Draws are as wide as Student's interval.
    """
    count, total_M = len(parts_PM), parts_PM.sum(axis=0)
    gaps_B = total_M[1:] / total_M[0]
    value = float(np.abs(gaps_B).sum())
    if count < 2:
        return Estimate(value, None, None, count)
    beyond_PB = (parts_PM[:, 1:] - np.outer(parts_PM[:, 0], gaps_B)) / total_M[0]
    width = 1 + parts_PM.shape[1]
    draws = drawn_clusters(count, resamples=resamples, seed=seed, width=width)
    wider = students_quantile(count) / NormalDist().inv_cdf(0.5 + LEVEL / 2)
    noise_RB = wider * np.concatenate([often_RP @ beyond_PB for often_RP in draws])
    draws_R = np.abs(gaps_B + noise_RB).sum(axis=1)
    top = float(np.quantile(draws_R, 0.5 + LEVEL / 2))
    noise = float(np.quantile(np.abs(noise_RB).sum(axis=1), LEVEL))
    low = max(0.0, 2 * value - top) if value > noise else 0.0
    return Estimate(value, low, min(1.0, max(value, top + value - float(draws_R.mean()))), count)


def _reliability(
    differences_N: NDArray[np.float64], prompts: Sequence[str], bins: int
) -> list[dict[str, Any]]:
    confidence_N, right_N, bin_N = _confidence_and_right(differences_N, bins)
    rows = []
    for number in range(bins):
        inside = np.flatnonzero(bin_N == number)
        if len(inside):
            within = [prompts[i] for i in inside.tolist()]
            right = clustered_interval(right_N[inside].tolist(), within)
            rows.append(
                {
                    "low": 0.5 + number / (2 * bins),
                    "high": 0.5 + (number + 1) / (2 * bins),
                    "confidence": float(confidence_N[inside].mean()),
                    "accuracy": right.mean,
                    "ci95": [right.low, right.high],
                    "n": right.n,
                }
            )
    return rows


def _temperature(
    differences_N: NDArray[np.float64],
    prompt_N: NDArray[np.int64],
    *,
    bins: int,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Return the temperature of all pairs, and what one fitted on other prompts would do.

    Returns:
        `value` and `ci95`; `log_loss`, `ece` and their intervals after division by the temperature
        of the other folds of prompts. None below as many prompts as folds, or where no temperature
        helps: the scores are no better than chance, or all equal.
    """
    scale = float(np.sqrt(np.mean(differences_N**2))) if len(differences_N) else 0.0
    prompts = int(prompt_N.max()) + 1 if len(prompt_N) else 0
    if scale == 0 or prompts < FOLDS:
        return None
    losses_PG = _losses_on_grid(differences_N / scale, prompt_N)
    total_G = losses_PG.sum(axis=0)
    inverse = float(_GRID_G[total_G.argmin()])
    if inverse == 0:
        return None
    # Prompts are in the order of their digests, so that every fifth is a fold drawn at random.
    inverse_P = np.zeros(prompts)
    for fold in range(FOLDS):
        others_G = total_G - losses_PG[fold::FOLDS].sum(axis=0)
        inverse_P[fold::FOLDS] = _GRID_G[others_G.argmin()] / scale
    ece, log_loss = calibration_errors(
        differences_N * inverse_P[prompt_N], prompt_N, bins=bins, resamples=resamples, seed=seed
    )
    return {
        "value": scale / inverse,
        "ci95": [scale * end for end in _ends(differences_N / scale, prompt_N, inverse)],
        "log_loss": log_loss.value,
        "ci95_log_loss": log_loss.ci95,
        "ece": ece.value,
        "ci95_ece": ece.ci95,
    }


def _ends(
    scaled_N: NDArray[np.float64], prompt_N: NDArray[np.int64], inverse: float
) -> list[float]:
    """Return Student's interval of the logarithm of a temperature, as temperatures of the grid.

    The variance of what solves an equation summed over prompts is the sandwich (White, 1982; by
    clusters, Liang and Zeger, 1986).
    """
    share_N = expit(inverse * scaled_N)
    slope_P = np.bincount(prompt_N, weights=scaled_N * (_target(scaled_N) - share_N))
    curve = float((scaled_N**2 * share_N * (1 - share_N)).sum())
    half = students_quantile(len(slope_P)) * math.sqrt(slope_P @ slope_P) / (curve * inverse)
    least, most = np.log(_GRID_G[[1, -1]])
    ends: list[float] = np.exp(
        -np.clip(math.log(inverse) + np.array([half, -half]), least, most)
    ).tolist()
    return ends


def _target(differences_N: NDArray[np.float64]) -> float:
    """Return Platt's target of "the better one is better"."""
    return (len(differences_N) + 1) / (len(differences_N) + 2)


def _losses_on_grid(
    scaled_N: NDArray[np.float64], prompt_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the summed log loss of each prompt at each temperature of the grid."""
    target = _target(scaled_N)
    losses_PG = np.zeros((int(prompt_N.max()) + 1, len(_GRID_G)))
    for place, inverse in enumerate(_GRID_G):
        loss_N = np.logaddexp(0, -inverse * scaled_N) + (1 - target) * inverse * scaled_N
        losses_PG[:, place] = np.bincount(prompt_N, weights=loss_N, minlength=len(losses_PG))
    return losses_PG
