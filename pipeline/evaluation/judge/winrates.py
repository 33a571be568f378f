"""Win rates between two checkpoints that answered the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.intervals import LEVEL, Estimate, paired_outcomes

TIE = 1e-6
"""Scores nearer than this tie: a batch of another shape moves a model's score by less."""


class WinRate(NamedTuple):
    """How often one answer was judged better than another; ties count half in the rate."""

    wins: int
    ties: int
    losses: int
    rate: Estimate


def compare(
    a: Sequence[float], b: Sequence[float], *, resamples: int, seed: int, tie: float = TIE
) -> WinRate:
    """Count on how many prompts `a` scores above, the same as (within `tie`), and below `b`.

    Raises:
        ValueError: the two have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} scores don't come in pairs")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    wins = int((differences > tie).sum())
    losses = int((differences < -tie).sum())
    return rate(wins, len(differences) - wins - losses, losses, resamples=resamples, seed=seed)


def rate(
    wins: int, ties: int, losses: int, *, resamples: int, seed: int, level: float = LEVEL
) -> WinRate:
    """Return the win rate, ties half, with its interval over prompts.

    The rate is half of 1 + (wins - losses) / n, and so are the ends of its interval, which allows
    for prompts that mostly tie (`data.intervals.paired_outcomes`).
    """
    n = wins + ties + losses
    outcome = paired_outcomes(wins, losses, n, resamples=resamples, seed=seed, level=level)
    value, low, high = (None if end is None else (1 + end) / 2 for end in outcome[:3])
    return WinRate(wins, ties, losses, Estimate(value, low, high, n))
