"""How well scores agree with held-out rankings, and whether length alone would do as well.

Everything is counted over pairs of completions of one prompt that an annotator ranked strictly.
Equal scores count half. Pairs of a prompt depend on each other, so the intervals are cluster-robust
by prompt.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from data.records import Ranking, prompt_hash

MATCHED = 0.1
_Z = 1.959963984540054
_BINS: Sequence[tuple[str, float, float]] = (
    ("better is over 50% shorter", -1.0, -0.5),
    ("better is 10-50% shorter", -0.5, -MATCHED),
    ("within 10%", -MATCHED, MATCHED),
    ("better is 10-50% longer", MATCHED, 0.5),
    ("better is over 50% longer", 0.5, 1.0),
)


@dataclass(frozen=True)
class ScoredPair:
    """Two completions of a prompt that an annotator ranked strictly.

    Attributes:
        prompt: digest of the prompt; pairs of a prompt depend on each other.
        better: score of the preferred completion.
        worse: score of the other.
        better_length: characters of the preferred completion.
        worse_length: characters of the other.
        agreement: share of annotators that share this preference, None where one was asked.
    """

    prompt: str
    better: float
    worse: float
    better_length: int
    worse_length: int
    agreement: float | None = None

    @property
    def length_difference(self) -> float:
        """Better minus worse length, as a share of the longer one: from -1 to 1."""
        longer = max(self.better_length, self.worse_length)
        return (self.better_length - self.worse_length) / longer if longer else 0.0


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `n` is the number of pairs."""

    mean: float
    low: float
    high: float
    n: int


def scored_pairs(
    rankings: Sequence[Ranking], scores: Sequence[Sequence[float]]
) -> list[ScoredPair]:
    """Return the strictly ranked pairs of all rankings.

    The agreement of a pair is the number `meta["agreement"]` of its ranking where there is one,
    else counted, where several annotators ranked the same two completions of a prompt.

    Args:
        rankings: held-out rankings.
        scores: the scores of each ranking's completions.
    """
    pairs = []
    votes = _votes(rankings)
    for ranking, values in zip(rankings, scores, strict=True):
        key = prompt_hash(ranking.prompt)
        for a, b in combinations(range(len(ranking.completions)), 2):
            if ranking.ranks[a] == ranking.ranks[b]:
                continue
            better, worse = (a, b) if ranking.ranks[a] < ranking.ranks[b] else (b, a)
            texts = ranking.completions[better], ranking.completions[worse]
            pairs.append(
                ScoredPair(
                    prompt=key,
                    better=values[better],
                    worse=values[worse],
                    better_length=len(texts[0]),
                    worse_length=len(texts[1]),
                    agreement=_agreement(ranking, votes[key, *texts], votes[key, *texts[::-1]]),
                )
            )
    return pairs


def _votes(rankings: Sequence[Ranking]) -> dict[tuple[str, ...], float]:
    """Count how many annotators prefer one text over another, ties half to each."""
    votes: dict[tuple[str, ...], float] = defaultdict(float)
    for ranking in rankings:
        key = prompt_hash(ranking.prompt)
        rows = zip(ranking.completions, ranking.ranks, strict=True)
        for (text_a, rank_a), (text_b, rank_b) in combinations(rows, 2):
            won = 0.5 if rank_a == rank_b else float(rank_a < rank_b)
            votes[key, text_a, text_b] += won
            votes[key, text_b, text_a] += 1 - won
    return votes


def _agreement(ranking: Ranking, votes_for: float, against: float) -> float | None:
    given = ranking.meta.get("agreement")
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    total = votes_for + against
    return votes_for / total if total > 1 else None


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
    """Return how often the preferred completion has the higher score."""
    return _share(pairs, lambda p: p.better - p.worse)


def longer_wins(pairs: Sequence[ScoredPair]) -> Estimate:
    """Return how often the preferred completion is the longer one, equal lengths half."""
    return _share(pairs, lambda p: p.better_length - p.worse_length)


def length_matched(pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """Return the pairs whose lengths are within 10 % of the longer one."""
    return [p for p in pairs if abs(p.length_difference) <= MATCHED]


def _share(pairs: Sequence[ScoredPair], sign: Callable[[ScoredPair], float]) -> Estimate:
    signs = [sign(p) for p in pairs]
    values = [0.5 if s == 0 else float(s > 0) for s in signs]
    return clustered_interval(values, [p.prompt for p in pairs])


def calibration(pairs: Sequence[ScoredPair], *, bins: int = 5) -> dict[str, Any]:
    """Return whether sigmoid(score difference) can be read as a probability.

    A pair's confidence is that probability for the completion with the higher score, from 0.5 to 1;
    a calibrated model is right as often as it is confident.

    Returns:
        `ece` (mean distance between confidence and accuracy, weighted by pairs), `log_loss`, and
        for each filled bin of `reliability`: low, high, confidence, accuracy, n.
    """
    rows: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    log_loss = 0.0
    for pair in pairs:
        difference = pair.better - pair.worse
        confidence = 1 / (1 + math.exp(-abs(difference)))
        right = 0.5 if difference == 0 else float(difference > 0)
        rows[min(bins - 1, int((confidence - 0.5) * 2 * bins))].append((confidence, right))
        # log(1 + e^-d), without overflow.
        log_loss += max(0.0, -difference) + math.log1p(math.exp(-abs(difference)))
    reliability = []
    for number, row in enumerate(rows):
        if row:
            reliability.append(
                {
                    "low": 0.5 + number / (2 * bins),
                    "high": 0.5 + (number + 1) / (2 * bins),
                    "confidence": sum(c for c, _ in row) / len(row),
                    "accuracy": sum(r for _, r in row) / len(row),
                    "n": len(row),
                }
            )
    n = max(1, len(pairs))
    gaps = (abs(b["confidence"] - b["accuracy"]) * b["n"] for b in reliability)
    return {"ece": sum(gaps) / n, "log_loss": log_loss / n, "reliability": reliability}


def quality(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return everything the report says of a reward model, ready for JSON.

    `longer_wins` and `shorter_wins` are what a model that only looked at length would reach; they
    add up to 1. A share over no pairs is None.
    """
    accuracy = pair_accuracy(pairs)
    longer = longer_wins(pairs)
    matched = pair_accuracy(length_matched(pairs))
    return {
        "accuracy": _number(accuracy),
        "ci95": [accuracy.low, accuracy.high],
        "n_pairs": accuracy.n,
        "n_prompts": len({p.prompt for p in pairs}),
        "longer_wins": _number(longer),
        "shorter_wins": None if longer.n == 0 else 1 - longer.mean,
        "accuracy_length_matched": _number(matched),
        "ci95_length_matched": [matched.low, matched.high],
        "n_pairs_length_matched": matched.n,
        "by_length_difference": _by_length_difference(pairs),
        "by_agreement": _by_agreement(pairs),
        "calibration": calibration(pairs),
    }


def _number(estimate: Estimate) -> float | None:
    return estimate.mean if estimate.n else None


def _row(pairs: Sequence[ScoredPair], **labels: Any) -> dict[str, Any]:
    estimate = pair_accuracy(pairs)
    ci95 = [estimate.low, estimate.high]
    return {**labels, "accuracy": _number(estimate), "ci95": ci95, "n_pairs": estimate.n}


def _by_length_difference(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    rows = []
    for label, low, high in _BINS:
        inside = [p for p in pairs if _bin(p) == label]
        rows.append(_row(inside, label=label, low=low, high=high))
    return rows


def _bin(pair: ScoredPair) -> str:
    difference = pair.length_difference
    if abs(difference) <= MATCHED:
        return "within 10%"
    side = "longer" if difference > 0 else "shorter"
    return f"better is {'over 50%' if abs(difference) > 0.5 else '10-50%'} {side}"


def _by_agreement(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    groups: Mapping[float, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        if pair.agreement is not None:
            groups[round(pair.agreement, 2)].append(pair)
    return [_row(groups[share], agreement=share) for share in sorted(groups)]
