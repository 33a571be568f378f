"""Win rates between two checkpoints that answered the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.intervals import LEVEL, Estimate, wilson

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
    """Count on how many prompts `a` scores above, the same as, and below `b`.

    Args:
        a: scores of one checkpoint's answers.
        b: scores of the other's, to the same prompts in the same order.
        resamples: draws of the bootstrap.
        seed: of the bootstrap.
        tie: largest difference that is none.

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
    """Return the win rate, ties half, with its bootstrap interval over prompts.

    To draw prompts anew is to draw the three counts from a multinomial distribution, so the counts
    are all that the interval needs. Where all outcomes agree the bootstrap would claim certainty;
    Wilson's interval stands in.
    """
    n = wins + ties + losses
    if n == 0 or max(wins, ties, losses) == n:
        return WinRate(wins, ties, losses, wilson(wins + ties / 2, n, level=level))
    counts = np.random.default_rng(seed).multinomial(
        n, [wins / n, ties / n, losses / n], size=resamples
    )
    rates = (counts[:, 0] + counts[:, 1] / 2) / n
    low, high = np.quantile(rates, [0.5 - level / 2, 0.5 + level / 2])
    return WinRate(wins, ties, losses, Estimate((wins + ties / 2) / n, float(low), float(high), n))
