"""Several scorers as one: reward models that judge together, and weighted sums.

An ensemble is against the errors that each reward model has of its own.

A policy that is optimised against one reward model finds what that model wrongly likes. Models
that were trained with other seeds go wrong elsewhere, so that their lowest score, or their mean
less a price on their disagreement, is harder to fool (Coste et al. 2023, "Reward Model Ensembles
Help Mitigate Overoptimization", section 3.2: mean, worst case, uncertainty weighted).

Shapes: M members, B responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from reward.scorer import Facts, Scorer, scores_of

if TYPE_CHECKING:
    from data.records import Prompt

Combination = Literal["mean", "min", "mean_minus_std", "mean_minus_variance"]


def combined(*, scores_MB: Tensor, how: Combination, coefficient: float = 1.0) -> Tensor:
    """Return one score a response from those of all members.

    Args:
        scores_MB: scores of each member, on one scale.
        how: "mean"; "min", the worst case (WCO); "mean_minus_std", the mean less `coefficient`
            standard deviations; "mean_minus_variance", the mean less `coefficient` variances
            (UWO, equation 3). Deviation and variance are over the members, divided by M.
        coefficient: price of disagreement; of no account to the first two.
    """
    mean_B = scores_MB.mean(dim=0)
    if how == "mean":
        return mean_B
    if how == "min":
        return scores_MB.min(dim=0).values
    variance_B = scores_MB.var(dim=0, correction=0)
    return mean_B - coefficient * (
        variance_B if how == "mean_minus_variance" else variance_B.sqrt()
    )


@dataclass(frozen=True)
class Ensemble:
    """Reward models whose scores are combined; a `Scorer`.

    Attributes:
        members: each with its own tokenizer and template; their scores must be on one scale, as
            those of reward stages are, whose bias puts demonstrations at 0.
        how: see `combined`.
        coefficient: price of disagreement.
        name: what reports call it.
    """

    members: Sequence[Scorer]
    how: Combination = "mean"
    coefficient: float = 1.0
    name: str = "ensemble"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return the combined score of each response, without facts."""
        return self._combined(prompts, responses, None)

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return the combined score of each response; its members are given the facts."""
        return self._combined(prompts, responses, facts)

    def _combined(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts | None
    ) -> list[float]:
        scores_MB = torch.tensor(
            [scores_of(member, prompts, responses, facts) for member in self.members],
            dtype=torch.float64,
        )
        scores_B = combined(scores_MB=scores_MB, how=self.how, coefficient=self.coefficient)
        return [float(score) for score in scores_B]


@dataclass(frozen=True)
class WeightedSum:
    """Any scorers, each clipped and weighted; a `Scorer`.

    Attributes:
        terms: scorer, weight, and the size its score is clipped to (None never clips).
        name: what reports call it.
    """

    terms: Sequence[tuple[Scorer, float, float | None]]
    name: str = "reward"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return the sum for each response, without facts."""
        return self._sum(prompts, responses, None)

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return the sum for each response; terms that look at facts are given them."""
        return self._sum(prompts, responses, facts)

    def _sum(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts | None
    ) -> list[float]:
        total = [0.0] * len(responses)
        for scorer, weight, clip in self.terms:
            for place, score in enumerate(scores_of(scorer, prompts, responses, facts)):
                total[place] += weight * (score if clip is None else max(-clip, min(clip, score)))
        return total
