"""The embedded world's gold annotator, labelling like anybody else."""

from __future__ import annotations

import random

from data.labels.annotators.working import submission
from data.labels.records import AnnotatorKind, Assignment, Mode, Submission
from data.records import prompt_hash
from data.world.annotator import GoldAnnotator

_STRENGTHS = (0.1, 0.35)
"""Differences of the score from which the better of two is "better", and "much better"."""


class GoldJudge:
    """Ranks by what is right in the world.

    Args:
        world_seed: seed of the world that the prompts are from.
        noise: standard deviation of its error, in units of its score (0 to 1).
        seed: of that error; a task that comes again is judged with another error.
        name: the annotator's.
    """

    kind: AnnotatorKind = "gold"

    def __init__(
        self, *, world_seed: int = 0, noise: float = 0.0, seed: int = 0, name: str = "gold"
    ) -> None:
        self.annotator = GoldAnnotator(world_seed)
        self.noise, self.seed, self.name = noise, seed, name

    def judge(self, assignment: Assignment, mode: Mode) -> Submission:
        """Return the label of a task; ratings are 1 plus six times the score."""
        new = assignment.task.new
        rng = random.Random(
            f"{self.seed} {new.key} {prompt_hash(new.prompt)} {assignment.purpose == 'repeat'}"
        )
        ranks = self.annotator.rank(new.prompt, new.completions, noise=self.noise, rng=rng)
        scores = [self.annotator.score(new.prompt, text) for text in new.completions]
        gap = abs(scores[0] - scores[1])
        strength = 1 + sum(gap >= least for least in _STRENGTHS)
        return submission(
            assignment,
            mode,
            ranks,
            ratings=[1 + round(6 * score) for score in scores],
            strength=strength,
        )
