"""Shares of pairs with intervals that know of prompts.

Pairs of a prompt depend on each other, so the intervals are cluster-robust by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data.intervals import clustered_outcomes
from reward.quality.pairs import ScoredPair


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
    """Return the mean of marks (1, half, 0) with a 95 % interval that knows of clusters.

    Ties half, as in a win rate (`data.intervals.clustered_outcomes`): Wilson's interval with the
    effective number of observations where nothing ties. Of no marks it is all from 0 to 1.
    """
    outcome = clustered_outcomes([2 * value - 1 for value in values], clusters)
    if outcome.low is None or outcome.high is None:
        return Estimate(math.nan, 0.0, 1.0, 0)
    mean = sum(values) / outcome.n  # counted itself: (1 + outcome) / 2 is rounded
    low, high = min(mean, (1 + outcome.low) / 2), max(mean, (1 + outcome.high) / 2)
    return Estimate(mean, low, high, outcome.n)


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
