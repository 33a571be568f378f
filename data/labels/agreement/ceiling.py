"""What agreement between annotators allows a reward model to reach on their labels.

Take a pair of answers, and let q be the share of the annotators' whole pool that prefers the first.
Two of them, drawn independently, agree with probability q^2 + (1 - q)^2 = (1 + d^2) / 2, where
d = |2q - 1|. A model that is judged on one annotator's label does best by saying what most of the
pool says, and is right with probability max(q, 1 - q) = (1 + d) / 2. Over pairs:

    agreement  a = (1 + E[d^2]) / 2          ceiling  c = (1 + E[d]) / 2

Since E[d^2] <= E[d] <= sqrt(E[d^2]) for d in [0, 1], the agreement bounds the ceiling both ways:

    a  <=  c  <=  (1 + sqrt(2a - 1)) / 2

The right side is reached when all pairs are alike hard: each annotator errs alone and equally
often, with p(correct) = (1 + sqrt(2a - 1)) / 2. The left side is reached when each pair is either
beyond doubt or a toss of a coin. The truth lies between; where some pairs are much harder than
others it is nearer the left. Ties stand outside: `a` counts pairs on which both took a side.

Errors that annotators share (all take the longer answer, say) do not lower the ceiling: a model can
learn them. So the ceiling is one of accuracy on labels, not of being right.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from data.labels.agreement.figures import Figure


class Ceiling(NamedTuple):
    """Between which accuracies the best possible model lies on one annotator's labels.

    Attributes:
        low: reached when pairs are beyond doubt or tosses of a coin.
        high: p(correct) of an annotator when all pairs are alike hard.
        low_end: `low` at the lower end of the agreement's interval.
        high_end: `high` at its upper end.
        note: what must be known, in words.
    """

    low: float | None
    high: float | None
    low_end: float | None
    high_end: float | None
    note: str


def annotator_accuracy(*, agreement: float) -> float:
    """Return p(correct) of annotators who err independently and alike: (1 + sqrt(2a - 1)) / 2.

    Agreement of one half or less is what guessing gives, so p is one half.

    Raises:
        ValueError: agreement is no share.
    """
    if not 0 <= agreement <= 1:
        raise ValueError(f"agreement is a share from 0 to 1, not {agreement}")
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def accuracy_ceiling(*, agreement: Figure) -> Ceiling:
    """Return what the agreement without ties allows a reward model; see the module.

    Args:
        agreement: pair agreement among those who took a side.
    """
    if agreement.value is None:
        return Ceiling(None, None, None, None, f"not known: {agreement.note}")
    low = max(0.5, agreement.value)
    high = annotator_accuracy(agreement=agreement.value)
    low_end = None if agreement.low is None else max(0.5, agreement.low)
    high_end = None if agreement.high is None else annotator_accuracy(agreement=agreement.high)
    note = ""
    if agreement.value <= 0.5:
        note = "annotators agree no more than chance: there is nothing here to learn"
    elif agreement.value == 1:
        note = "annotators never disagree: these labels set no limit that can be seen"
    return Ceiling(low, high, low_end, high_end, note)
