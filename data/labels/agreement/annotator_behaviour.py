"""How annotators work whatever the answers say: places, lengths, ties, and time.

Pure functions; a figure that is not defined says why in words.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import NamedTuple

from data.intervals import wilson
from data.labels.agreement.figures import Figure, figure, share
from data.words import counted

CUT = 3.5
"""Modified z-score beyond which a time is an outlier (Iglewicz and Hoaglin, 1993)."""
MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


class Seen(NamedTuple):
    """A label and how its task stood before the annotator.

    Attributes:
        prompt: what is said of one hangs together.
        ranks: of the completions in the task's order.
        order: `order[i]` is the completion shown at place i; empty when it is not known.
        lengths: of the completions, in characters.
    """

    prompt: str
    ranks: Sequence[int]
    order: Sequence[int]
    lengths: Sequence[int]


def first_shown_wins(*, labels: Iterable[Seen]) -> Figure:
    """Share of strictly ranked pairs won by the completion that was shown before the other.

    With orders drawn at random it is one half unless the place sways the annotator.
    """
    counts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for label in labels:
        if sorted(label.order) != list(range(len(label.ranks))):
            continue
        shown = [label.ranks[index] for index in label.order]
        _add(counts, label.prompt, [(a < b) for a, b in combinations(shown, 2) if a != b])
    return share(
        counts,
        nothing="no label has both a strict order and a known order shown",
        at_end="the one shown first won every pair",
    )


def longer_wins(*, labels: Iterable[Seen]) -> Figure:
    """Share of strictly ranked pairs of different length won by the longer completion."""
    counts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for label in labels:
        pairs = combinations(zip(label.ranks, label.lengths, strict=True), 2)
        _add(
            counts,
            label.prompt,
            [(a[0] < b[0]) == (a[1] > b[1]) for a, b in pairs if a[0] != b[0] and a[1] != b[1]],
        )
    return share(
        counts,
        nothing="no label orders two completions of different length",
        at_end="the longer one won every pair",
    )


def tie_rate(*, labels: Iterable[Seen]) -> Figure:
    """Share of pairs that are ties."""
    counts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for label in labels:
        _add(counts, label.prompt, [a == b for a, b in combinations(label.ranks, 2)])
    return share(counts, nothing="no labels", at_end="every pair is a tie")


def skip_rate(*, labels: int, skips: int) -> Figure:
    """Share of tasks met that were skipped, with Wilson's interval."""
    estimate = wilson(skips, labels + skips)
    if estimate.value is None:
        return Figure(None, note="no tasks were met")
    return figure(estimate, of="tasks met")


def _add(counts: dict[str, tuple[float, float]], prompt: str, won: list[bool]) -> None:
    before = counts[prompt]
    counts[prompt] = (before[0] + sum(won), before[1] + len(won))


@dataclass(frozen=True)
class Seconds:
    """Time on tasks.

    Attributes:
        median: of the labels with a time.
        mad: median absolute deviation from it.
        total: seconds in all, outliers too.
        n: labels with a time.
        fast: labels that are outliers on the fast side.
        slow: labels that are outliers on the slow side.
        note: what must be known, in words.
    """

    median: float | None
    mad: float | None
    total: float
    n: int
    fast: int
    slow: int
    note: str = ""


def seconds(*, times: Sequence[float]) -> Seconds:
    """Return the median time of a task, and how many are far from it.

    Times lean to the right, so outliers are told on their logarithms, where a hasty click shows
    as well as a forgotten page: |log t - median| / (1.4826 MAD) > 3.5 (Iglewicz and Hoaglin,
    1993).

    Args:
        times: seconds a label; 0 is one that was not timed, left out and told.
    """
    timed = [time for time in times if time > 0]
    left_out = len(times) - len(timed)
    note = f"{counted(left_out, 'label')} without a time" if left_out else ""
    if not timed:
        return Seconds(None, None, 0.0, 0, 0, 0, note or "no labels")
    logs = [math.log(time) for time in timed]
    middle = median(logs)
    spread = MAD_TO_SIGMA * median(abs(value - middle) for value in logs)
    scores = [(value - middle) / spread for value in logs] if spread else []
    if not spread and len(timed) > 1:
        same = "half of the times or more are the same: no outliers are told"
        note = f"{note}; {same}" if note else same
    usual = median(timed)
    return Seconds(
        median=usual,
        mad=median(abs(time - usual) for time in timed),
        total=math.fsum(timed),
        n=len(timed),
        fast=sum(score < -CUT for score in scores),
        slow=sum(score > CUT for score in scores),
        note=note,
    )
