"""Logistic regression of outcomes that may be halves, for many resamples at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

PRIOR_DEVIATION = 10.0
"""Deviation of the normal prior of each coefficient, in log-odds, which keeps a fit finite where
one side won everything: of 30 prompts all won it makes a rate of .998, of a fair one it moves
nothing that is seen."""
_STEP = 2.0
_TOLERANCE = 1e-6
_STEPS = 100

Floats = NDArray[np.float64]


def fit_logistic(
    features_GF: Floats, won_RG: Floats, n_RG: Floats, *, start_F: Floats | None = None
) -> Floats:
    """Return the coefficients (R, F) that make the outcomes likeliest, prior included.

    Newton's method on all resamples together; a step is at most 2 in log-odds, so that it does
    not run away where the likelihood is flat.

    Args:
        features_GF: F features of each of G kinds of comparison.
        won_RG: how many of a kind were won in each resample, ties half.
        n_RG: how many of a kind there were.
        start_F: where to begin; 0 without it.
    """
    resamples, count = len(won_RG), features_GF.shape[1]
    squares_GFF = features_GF[:, :, None] * features_GF[:, None, :]
    squares = squares_GFF.reshape(len(features_GF), count**2)
    precision_FF = np.eye(count) / PRIOR_DEVIATION**2
    odds_RF = np.tile(np.zeros(count) if start_F is None else start_F, (resamples, 1))
    won_RF = won_RG @ features_GF
    for _ in range(_STEPS):
        share_RG = expit(odds_RF @ features_GF.T)
        expected_RG = n_RG * share_RG
        slope_RF = won_RF - expected_RG @ features_GF - odds_RF @ precision_FF
        weight_RG = np.multiply(expected_RG, 1 - share_RG, out=share_RG)
        curve_RFF = (weight_RG @ squares).reshape(resamples, count, count) + precision_FF
        step_RF = np.linalg.solve(curve_RFF, slope_RF[:, :, None])[:, :, 0]
        longest_R1 = np.abs(step_RF).max(axis=1, keepdims=True)
        odds_RF += step_RF * np.minimum(1, _STEP / np.maximum(longest_R1, _TOLERANCE))
        if longest_R1.max() < _TOLERANCE:
            break
    return odds_RF
