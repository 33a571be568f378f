"""Shares of pairs with intervals that know of prompts.

Pairs of a prompt depend on each other, so the intervals are cluster-robust by prompt.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reward.quality.pairs import ScoredPair

_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `n` is the number of pairs."""

    mean: float
    low: float
    high: float
    n: int

    def to_json(self, name: str = "accuracy") -> dict[str, Any]:
        """Return it under a name, with interval and count; None of no pairs."""
        value = self.mean if self.n else None
        return {name: value, "ci95": [self.low, self.high], "n_pairs": self.n}


def clustered_interval(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Return the mean of shares (0 to 1) with a 95 % interval that knows of clusters.

    Wilson's interval with the effective number of observations: n divided by the design effect,
    which is the variance of the mean by clusters (linearised ratio estimator) over that of
    independent values. Never more than n; where nothing varies, the number of clusters.
    """
    n = len(values)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    mean = sum(values) / n
    totals: dict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        totals[cluster] += value - mean
    k = len(totals)
    by_cluster = sum(total**2 for total in totals.values()) / n**2 * (k / max(1, k - 1))
    independent = mean * (1 - mean) / n
    effective = float(k)
    if by_cluster > 0 and k > 1:
        effective = min(n, n * independent / by_cluster)
    low, high = _wilson(mean, max(1.0, effective))
    return Estimate(mean, low, high, n)


def _wilson(mean: float, n: float) -> tuple[float, float]:
    z2 = _Z**2
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n**2))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def pair_accuracy(pairs: Sequence[ScoredPair]) -> Estimate:
    """Return how often the preferred completion has the higher score, equal scores half."""
    return _share(pairs, lambda p: half_if_equal(p.better, p.worse))


def longer_wins(pairs: Sequence[ScoredPair]) -> Estimate:
    """Return how often the preferred completion is the longer one, equal lengths half."""
    return _share(pairs, lambda p: half_if_equal(p.better_length, p.worse_length))


def equal_scores(pairs: Sequence[ScoredPair]) -> Estimate:
    """Return how often the scores do not tell two completions apart."""
    return _share(pairs, lambda p: float(p.better == p.worse))


def half_if_equal(better: float, worse: float) -> float:
    """Return 1 where the first is higher, 0 where the second is, one half where they are equal."""
    return 0.5 if better == worse else float(better > worse)


def _share(pairs: Sequence[ScoredPair], value: Callable[[ScoredPair], float]) -> Estimate:
    return clustered_interval([value(p) for p in pairs], [p.prompt for p in pairs])
