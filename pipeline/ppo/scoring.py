"""The score of each response: scorers, weighted, normalised, clipped, and the end rule last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from data.errors import TrainingError
from pipeline.ppo.advantages import Moments, end_rule, moments
from pipeline.ppo.ranks import Ranks
from pipeline.ppo.rollout import Episodes
from pipeline.ppo.settings import Hyperparameters
from reward.scorers import Scorer


class Scores(NamedTuple):
    """Scores of a process's episodes.

    Attributes:
        raw_B: weighted sum of the scorers.
        final_B: what goes into the reward: normalised, clipped, after the end rule.
        parts: scores of each scorer, by name.
    """

    raw_B: Tensor
    final_B: Tensor
    parts: dict[str, Tensor]


@dataclass
class RunningMoments:
    """Mean and deviation of all scores so far, over all processes."""

    size: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, batch: Moments) -> None:
        """Take in the moments of a global batch."""
        self.size += float(batch.size)
        self.total += float(batch.total)
        self.squares += float(batch.squares)

    def normalized(self, scores_B: Tensor) -> Tensor:
        """Take off the mean and divide by the deviation."""
        mean = self.total / max(self.size, 1.0)
        variance = max(self.squares - self.size * mean**2, 0.0) / max(self.size - 1.0, 1.0)
        return (scores_B - mean) / math.sqrt(variance + 1e-8)

    def state(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"size": self.size, "total": self.total, "squares": self.squares}

    def restore(self, state: dict[str, float]) -> None:
        """Take up a state."""
        self.size, self.total, self.squares = state["size"], state["total"], state["squares"]


@dataclass
class RewardSum:
    """Any scorers, weighted.

    Attributes:
        scorers: with their weights.
        running: statistics for `normalize_scores`.
    """

    scorers: Sequence[tuple[Scorer, float]]
    running: RunningMoments = field(default_factory=RunningMoments)

    def score(self, episodes: Episodes, *, hyper: Hyperparameters, ranks: Ranks) -> Scores:
        """Score the episodes of this process.

        Raises:
            TrainingError: a scorer gave a number that is not finite.
        """
        prompts = [p.prompt for p in episodes.prompts]
        parts: dict[str, Tensor] = {}
        raw_B = torch.zeros(len(episodes), device=ranks.device)
        for place, (scorer, weight) in enumerate(self.scorers):
            scores_B = torch.tensor(
                scorer.score(prompts, episodes.texts), dtype=torch.float32, device=ranks.device
            )
            if not bool(scores_B.isfinite().all()):
                raise TrainingError(
                    f"reward {scorer.name} gave a score that is not finite; look at its model"
                )
            name = scorer.name if scorer.name not in parts else f"{scorer.name}.{place}"
            parts[name] = scores_B
            raw_B = raw_B + weight * scores_B
        final_B = raw_B
        if hyper.normalize_scores:
            batch = moments(raw_B, torch.ones_like(raw_B, dtype=torch.bool))
            self.running.add(Moments(*ranks.sum(torch.stack(batch)).unbind()))
            final_B = self.running.normalized(final_B)
        if hyper.score_clip is not None:
            final_B = final_B.clamp(-hyper.score_clip, hyper.score_clip)
        ended_B = torch.tensor([s.ended for s in episodes.samples], device=ranks.device)
        final_B = end_rule(
            scores_B=final_B, ended_B=ended_B, rule=hyper.end_rule, penalty=hyper.end_penalty
        )
        return Scores(raw_B, final_B, parts)
