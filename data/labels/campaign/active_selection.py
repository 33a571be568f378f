"""Which task to label next: what it is worth, and how likely it is chosen.

Scores of reward models are compared within a prompt only, so each model's scores are centred on
their task's mean; and models differ in scale, so they are divided by the model's root mean square
over the campaign. What is left are standardised scores, in standard deviations.
"""

from __future__ import annotations

import hashlib
import math
import random
import statistics
from collections.abc import Sequence

from data.labels.records import Strategy

Scores = Sequence[Sequence[float]]
"""Of one task: a row for each model, a column for each completion."""

MODELS_NEEDED: dict[Strategy, int] = {"random": 0, "small_gap": 1, "disagreement": 2}
"""How many rows of scores a task must have for a strategy."""


def fraction(*parts: object) -> float:
    """Return a number in [0, 1) that is the same for the same parts, and else looks random."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    # 53 bits: more would round to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def problem(scores: Scores, *, completions: int, strategy: Strategy) -> str | None:
    """Return why these scores do not serve the strategy, or None."""
    needed = MODELS_NEEDED[strategy]
    if len(scores) < needed:
        return f"strategy {strategy} needs scores of {needed} models, there are {len(scores)}"
    for row in scores:
        if len(row) != completions or not all(math.isfinite(score) for score in row):
            return f"scores {list(row)} are not {completions} finite numbers"
    return None


def scales(tasks: Sequence[Scores]) -> list[float]:
    """Return each model's root mean square of its centred scores; 1 where all scores are equal."""
    models = max((len(scores) for scores in tasks), default=0)
    rms = []
    for model in range(models):
        squares = [
            deviation**2
            for scores in tasks
            if model < len(scores)
            for deviation in _centred(scores[model])
        ]
        rms.append(math.sqrt(statistics.fmean(squares)) or 1.0)
    return rms


def priority(scores: Scores, *, scale: Sequence[float], strategy: Strategy) -> float:
    """Return what labelling a task is worth, in standard deviations; more is better.

    Args:
        scores: of the task.
        scale: of each model, from `scales`.
        strategy: `disagreement` gives the standard deviation between models, averaged over the
            completions; `small_gap` minus the gap between the best two of the models' mean;
            `random` 0.
    """
    if strategy == "random":
        return 0.0
    standard = [[d / scale[m] for d in _centred(row)] for m, row in enumerate(scores)]
    by_completion = list(zip(*standard, strict=True))
    if strategy == "disagreement":
        return statistics.fmean(statistics.pstdev(column) for column in by_completion)
    best, second = sorted((statistics.fmean(column) for column in by_completion), reverse=True)[:2]
    return second - best


def probabilities(priorities: Sequence[float]) -> list[float]:
    """Return the chance of each task of a pool: a softmax of the priorities, standardised.

    A task that is one standard deviation (of the pool) worthier is e times as likely; where all
    are worth the same, all are equally likely. None has no chance.
    """
    if not priorities:
        return []
    mean = math.fsum(priorities) / len(priorities)
    spread = math.sqrt(math.fsum((p - mean) ** 2 for p in priorities) / len(priorities))
    if spread <= 1e-12:
        return [1 / len(priorities)] * len(priorities)
    top = max(priorities)
    weights = [math.exp(max((value - top) / spread, -50.0)) for value in priorities]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def draw(weights: Sequence[float], rng: random.Random) -> tuple[int, float]:
    """Return an index drawn in proportion to the weights, and its probability."""
    index = rng.choices(range(len(weights)), weights)[0]
    return index, weights[index] / math.fsum(weights)


def _centred(row: Sequence[float]) -> list[float]:
    mean = statistics.fmean(row)
    return [score - mean for score in row]
