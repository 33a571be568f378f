"""Win rates between two checkpoints that answered the same prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from data.intervals import LEVEL, Estimate, clustered_outcomes, paired_outcomes

TIE = 1e-6
"""Scores nearer than this tie: a batch of another shape moves a model's score by less."""


class WinRate(NamedTuple):
    """How often one answer was judged better than another; ties count half in the rate."""

    wins: int
    ties: int
    losses: int
    rate: Estimate


def outcomes(a: Sequence[float], b: Sequence[float], *, tie: float = TIE) -> list[float]:
    """Return 1 where `a` scores above `b`, 0 where below, and half where they tie.

    Raises:
        ValueError: the two have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} scores don't come in pairs")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return [float(x) for x in (1 + (differences > tie) - (differences < -tie)) / 2]


def win_rate(
    judged: Sequence[float],
    *,
    prompts: Sequence[Hashable] | None = None,
    trials: int | None = None,
    resamples: int,
    seed: int,
) -> WinRate:
    """Count outcomes: 1 a win, half a tie, 0 a loss; the mean of several verdicts is one of these.

    Where `prompts` tells that one was asked several times, its outcomes hang together. `trials`
    counts the verdicts where an outcome may be the mean of several; the mean is what enters the
    rate, and counts as won above one half.
    """
    wins = sum(outcome > 0.5 for outcome in judged)
    ties = sum(outcome == 0.5 for outcome in judged)
    losses = len(judged) - wins - ties
    whole = {*judged} <= {0.0, 0.5, 1.0}
    if whole and (prompts is None or len(set(prompts)) == len(judged)):
        return rate(wins, ties, losses, resamples=resamples, seed=seed)
    clusters = range(len(judged)) if prompts is None else prompts
    outcome = clustered_outcomes([2 * x - 1 for x in judged], clusters, trials=trials)
    return WinRate(wins, ties, losses, as_rate(outcome))


def as_rate(outcome: Estimate) -> Estimate:
    """Return wins minus losses, a share of all, as the rate with ties half: half of 1 + it."""
    value, low, high = (None if end is None else (1 + end) / 2 for end in outcome[:3])
    return Estimate(value, low, high, outcome.n)


def rate(
    wins: int, ties: int, losses: int, *, resamples: int, seed: int, level: float = LEVEL
) -> WinRate:
    """Return the win rate, ties half, with its interval over prompts.

    The rate is half of 1 + (wins - losses) / n, and so are the ends of its interval, which allows
    for prompts that mostly tie (`data.intervals.paired_outcomes`).
    """
    n = wins + ties + losses
    outcome = paired_outcomes(wins, losses, n, resamples=resamples, seed=seed, level=level)
    return WinRate(wins, ties, losses, as_rate(outcome))
