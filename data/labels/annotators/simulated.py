"""A pool of simulated annotators who differ in taste and err.

After AlpacaFarm (Dubois et al. 2023, section 3.2): thirteen annotators, drawn for each label, whose
judgements differ from each other and from themselves; each preference is flipped with probability
0.25. Theirs are language models with different prompts. Ours have no model in them: they see the
quality of an answer, which the caller provides, through tastes of their own.

Departures: tastes are numbers drawn from the seed (what length is worth, how much the first place
draws, from what difference on two answers differ), not prompts; and where K completions are ranked,
each pair is flipped by itself and ranks are made of the pairs won and lost (Copeland), so that a
flip of 0.25 moves fewer than a quarter of the pairs of a ranking. With K = 2 it is theirs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from data.labels.annotators.working import submission
from data.labels.records import (
    AnnotatorKind,
    Assignment,
    Mode,
    NewTask,
    Submission,
    copeland_ranks,
)

POOL = 13
"""Annotators of AlpacaFarm's pool."""
FLIP = 0.25
"""Chance that a preference is turned round, the same there."""

Quality = Callable[[NewTask], list[float]]
"""Gives what each completion of a task is worth, in [0, 1] or so."""


@dataclass(frozen=True)
class Taste:
    """How an annotator departs from the quality of answers, in its units.

    Attributes:
        length: worth of an answer e times as long.
        first: worth of standing in the first place.
        just_noticeable: smaller differences are ties.
    """

    length: float = 0.0
    first: float = 0.0
    just_noticeable: float = 0.0


def draw_taste(rng: random.Random) -> Taste:
    """Return a taste: most like longer answers a bit, and the first place draws a little."""
    return Taste(
        length=rng.gauss(0.04, 0.06),
        first=abs(rng.gauss(0.0, 0.03)),
        just_noticeable=rng.uniform(0.01, 0.06),
    )


class SimulatedAnnotator:
    """One annotator of a pool.

    Args:
        name: the annotator's.
        quality: what answers are worth.
        taste: how this one departs from that.
        flip: chance that a preference is turned round.
        seed: of the flips; a task that comes again is flipped anew.
    """

    kind: AnnotatorKind = "simulated"

    def __init__(
        self, name: str, *, quality: Quality, taste: Taste, flip: float = FLIP, seed: int = 0
    ) -> None:
        self.name, self.quality, self.taste = name, quality, taste
        self.flip, self.seed = flip, seed

    def judge(self, assignment: Assignment, mode: Mode) -> Submission:
        """Return the label of a task; ratings follow the ranks."""
        again = assignment.purpose == "repeat"
        rng = random.Random(f"{self.seed} {self.name} {assignment.task.new.key} {again}")
        values = self._values(assignment)
        return submission(
            assignment,
            mode,
            noisy_ranks(values, just=self.taste.just_noticeable, flip=self.flip, rng=rng),
        )

    def _values(self, assignment: Assignment) -> list[float]:
        new = assignment.task.new
        logs = [math.log(1 + len(text.split())) for text in new.completions]
        mean = fmean(logs)
        first = assignment.order[0] if assignment.order else None
        return [
            worth + self.taste.length * (log - mean) + self.taste.first * (place == first)
            for place, (worth, log) in enumerate(zip(self.quality(new), logs, strict=True))
        ]


def noisy_ranks(
    values: Sequence[float], *, just: float, flip: float, rng: random.Random
) -> list[int]:
    """Return dense ranks of pairs that are each turned round with probability `flip`.

    Pairs whose values differ by no more than `just` tie, and are not turned.
    """
    wins = []
    for a, b in combinations(range(len(values)), 2):
        turned = rng.random() < flip  # drawn for ties too: a pair's draw follows from its place
        if abs(values[a] - values[b]) > just:
            wins.append((a, b) if (values[a] > values[b]) != turned else (b, a))
    return copeland_ranks(wins, len(values))


def pool(
    *, quality: Quality, size: int = POOL, flip: float = FLIP, seed: int = 0
) -> list[SimulatedAnnotator]:
    """Return a pool of annotators with differing tastes."""
    return [
        SimulatedAnnotator(
            f"simulated {number + 1}",
            quality=quality,
            taste=draw_taste(random.Random(f"{seed} taste {number}")),
            flip=flip,
            seed=seed,
        )
        for number in range(size)
    ]


def gold_quality(world_seed: int) -> Quality:
    """Return what the embedded world's gold annotator finds answers worth."""
    from data.world.annotator import GoldAnnotator

    annotator = GoldAnnotator(world_seed)
    return lambda new: [annotator.score(new.prompt, text) for text in new.completions]


def score_quality(new: NewTask) -> list[float]:
    """Return the mean of the scores that reward models gave, squeezed into 0 to 1."""
    means = [fmean(column) for column in zip(*new.scores, strict=True)]
    return [1 / (1 + math.exp(-mean)) for mean in means]
