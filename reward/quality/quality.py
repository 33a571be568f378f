"""How well scores agree with held-out rankings, and whether length alone would do as well.

Everything is counted over pairs of completions of one prompt that an annotator ranked strictly.
Equal scores count half; all shares have intervals that are cluster-robust by prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reward.quality.length_rule import beats_length, warning
from reward.quality.pairs import ScoredPair
from reward.quality.probabilities import calibration
from reward.quality.shares import equal_scores, longer_wins, pair_accuracy

MATCHED = 0.1
_BINS: Sequence[tuple[str, float, float]] = (
    ("better is over 50% shorter", -1.0, -0.5),
    ("better is 10-50% shorter", -0.5, -MATCHED),
    ("within 10%", -MATCHED, MATCHED),
    ("better is 10-50% longer", MATCHED, 0.5),
    ("better is over 50% longer", 0.5, 1.0),
)
_MARGINS = ("smallest", "second", "third", "largest")
_PLACES: Mapping[str, Callable[[int, int], bool]] = {
    "neighbours in the ranking": lambda better, worse: worse - better == 1,
    "two places apart": lambda better, worse: worse - better == 2,
    "three places apart or more": lambda better, worse: worse - better > 2,
    "the best against the rest": lambda better, worse: better == 1,
    "among the rest": lambda better, worse: better > 1,
}
"""Of rankings of three places or more; the first three hold every pair once, the last two do."""


def quality(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return everything the report says of a reward model, ready for JSON.

    `longer_wins` and `shorter_wins` are what a model that only looked at length would reach; they
    add up to 1. A share over no pairs is None.
    """
    accuracy = pair_accuracy(pairs).to_json()
    matched = pair_accuracy(length_matched(pairs)).to_json()
    found = {
        "accuracy": accuracy["accuracy"],
        "ci95": accuracy["ci95"],
        "n_pairs": accuracy["n_pairs"],
        "n_prompts": len({p.prompt for p in pairs}),
        **_length_rules(pairs),
        "accuracy_length_matched": matched["accuracy"],
        "ci95_length_matched": matched["ci95"],
        "n_pairs_length_matched": matched["n_pairs"],
        "by_length_difference": _by_length_difference(pairs),
        "by_agreement": _by_agreement(pairs),
        "by_margin": _by_margin(pairs),
        "by_place": _by_place(pairs),
        "by_subset": _by_subset(pairs),
        "equal_scores": equal_scores(pairs).to_json("share"),
        "calibration": calibration(pairs),
    }
    return {**found, "warning": warning(found)}


def length_matched(pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """Return the pairs whose lengths are within 10 % of the longer one."""
    return [p for p in pairs if abs(p.length_difference) <= MATCHED]


def _length_rules(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return what both length rules reach, and how the model stands to the better one."""
    longer = longer_wins(pairs)
    low, high = longer.low, longer.high
    return {
        "longer_wins": longer.mean if pairs else None,
        "ci95_longer_wins": [low, high],
        "shorter_wins": 1 - longer.mean if pairs else None,
        "ci95_shorter_wins": [1 - high, 1 - low],
        "beats_length": beats_length(pairs),
    }


def _row(pairs: Sequence[ScoredPair], **labels: Any) -> dict[str, Any]:
    return {**labels, **pair_accuracy(pairs).to_json()}


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


def _by_margin(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """Return a row for each quarter of the pairs by how far their scores are apart."""
    if not pairs:
        return []
    margins = np.array([abs(p.better - p.worse) for p in pairs])
    edges = np.quantile(margins, [0.25, 0.5, 0.75])
    quarters = np.searchsorted(edges, margins)  # equal margins in one
    rows = []
    for number, name in enumerate(_MARGINS):
        inside = np.flatnonzero(quarters == number).tolist()
        if len(inside):
            ends = {"low": float(margins[inside].min()), "high": float(margins[inside].max())}
            rows.append(_row([pairs[i] for i in inside], label=f"{name} quarter", **ends))
    return rows


def _by_place(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    ranked = [p for p in pairs if p.places > 2]
    groups = {label: [p for p in ranked if holds(*p.ranks)] for label, holds in _PLACES.items()}
    return [_row(inside, label=label) for label, inside in groups.items() if inside]


def _by_subset(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """Return a row for each subset that rows name, with both length rules, as RewardBench has them.

    Source: Lambert et al. 2024 (RewardBench); some of its subsets are won by length alone.
    """
    groups: dict[str, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        if pair.subset is not None:
            groups[pair.subset].append(pair)
    return [_row(inside, subset=name, **_length_rules(inside)) for name, inside in groups.items()]
