"""Whether sigmoid(score difference) can be read as a probability, and what scale would make it so.

A pair's confidence is that probability for the completion with the higher score, from 0.5 to 1; a
calibrated model is right as often as it is confident (Guo et al. 2017, On calibration of modern
neural networks). The temperature T of sigmoid(difference / T) is fitted by the log loss, with
Platt's targets (1999) so that it is finite where every pair is right. What it does to pairs is told
of pairs whose prompts it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.intervals import Estimate, bootstrap_clusters, clustered_ratio
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
    above the truth: percentiles would never hold 0, the error of a calibrated model. The lower end
    is as far below the figure as the draws' upper end is above it, and 0 where gaps as large come
    of noise alone, in one of twenty draws about gaps of 0.
    """
    total_M = parts_PM.sum(axis=0)

    def of_the_draws(sums_RM: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.abs(sums_RM[:, 1:]).sum(axis=1) / sums_RM[:, 0])

    def of_noise(sums_RM: NDArray[np.float64]) -> NDArray[np.float64]:
        return of_the_draws(sums_RM - np.outer(sums_RM[:, 0] / total_M[0], [0, *total_M[1:]]))

    found, noise = (
        bootstrap_clusters(
            parts_PM, statistic=statistic, resamples=resamples, seed=seed, level=level
        )
        for statistic, level in ((of_the_draws, 0.95), (of_noise, 0.9))
    )
    if found.value is None or found.high is None or noise.high is None:
        return found
    low = max(0.0, 2 * found.value - found.high) if found.value > noise.high else 0.0
    return found._replace(low=low)


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

    def fitted(sums_RG: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            values_R = scale / _GRID_G[sums_RG.argmin(axis=1)]
        return np.where(np.isfinite(values_R), values_R, np.nan)

    value = bootstrap_clusters(losses_PG, statistic=fitted, resamples=resamples, seed=seed)
    if value.value is None:
        return None
    # Prompts are in the order of their digests, so that every fifth is a fold drawn at random.
    total_G = losses_PG.sum(axis=0)
    inverse_P = np.zeros(prompts)
    for fold in range(FOLDS):
        others_G = total_G - losses_PG[fold::FOLDS].sum(axis=0)
        inverse_P[fold::FOLDS] = _GRID_G[others_G.argmin()] / scale
    ece, log_loss = calibration_errors(
        differences_N * inverse_P[prompt_N], prompt_N, bins=bins, resamples=resamples, seed=seed
    )
    return {
        "value": value.value,
        "ci95": value.ci95,
        "log_loss": log_loss.value,
        "ci95_log_loss": log_loss.ci95,
        "ece": ece.value,
        "ci95_ece": ece.ci95,
    }


def _losses_on_grid(
    scaled_N: NDArray[np.float64], prompt_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the summed log loss of each prompt at each temperature of the grid."""
    target = (len(scaled_N) + 1) / (len(scaled_N) + 2)  # Platt's, of "the better one is better"
    losses_PG = np.zeros((int(prompt_N.max()) + 1, len(_GRID_G)))
    for place, inverse in enumerate(_GRID_G):
        loss_N = np.logaddexp(0, -inverse * scaled_N) + (1 - target) * inverse * scaled_N
        losses_PG[:, place] = np.bincount(prompt_N, weights=loss_N, minlength=len(losses_PG))
    return losses_PG
