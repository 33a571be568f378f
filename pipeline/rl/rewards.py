"""The score of each response: terms, each shaped and weighted; their sum shaped; the end rule last.

A term and the sum are shaped alike: normalised by running statistics, then clipped, if asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from data.errors import RewardError
from pipeline.rl.maths.advantages import EndRule, Moments, end_rule, moments
from pipeline.rl.processes import World
from pipeline.rl.rollout.rollout import Episodes
from reward.scorer import Facts, Scorer, scores_of

S_co = TypeVar("S_co", covariant=True)
"""What gives a score, or becomes what does once the models are there."""


class Scores(NamedTuple):
    """Scores of a process's episodes.

    Attributes:
        raw_B: weighted sum of the terms, normalised by no running statistics, so that those of two
            updates compare; a term that is not normalised is clipped.
        final_B: what goes into the reward: normalised, clipped, after the end rule.
        parts: scores of each term before it is shaped, by its scorer's name.
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


class Term(NamedTuple, Generic[S_co]):
    """One of the rewards that are added up.

    Attributes:
        scorer: gives it.
        weight: its shaped score is multiplied by this.
        clip: clip it to plus and minus this, after normalisation; None never clips.
        normalize: take off its running mean and divide by its running deviation.
    """

    scorer: S_co
    weight: float = 1.0
    clip: float | None = None
    normalize: bool = False


class Shaping(Protocol):
    """How the sum of the rewards is shaped: settings of an online method."""

    @property
    def normalize_scores(self) -> bool:
        """Whether scores are divided by their running deviation, after their mean is taken off."""
        ...

    @property
    def score_clip(self) -> float | None:
        """What scores are clipped to."""
        ...

    @property
    def end_rule(self) -> EndRule:
        """What a response without an end scores."""
        ...

    @property
    def end_penalty(self) -> float:
        """The figure that this rule takes."""
        ...


@dataclass
class RewardSum:
    """Rewards, weighted.

    Attributes:
        terms: what is added up.
        running: statistics of the sum, for `normalize_scores`.
        term_running: statistics of each term, for its `normalize`.
    """

    terms: Sequence[Term[Scorer]]
    running: RunningMoments = field(default_factory=RunningMoments)
    term_running: list[RunningMoments] = field(init=False)

    def __post_init__(self) -> None:
        self.term_running = [RunningMoments() for _ in self.terms]

    def drifts(self, hyper: Shaping) -> bool:
        """Tell whether running statistics shape the scores, so that two updates don't compare."""
        return hyper.normalize_scores or any(term.normalize for term in self.terms)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {**self.running.state(), "terms": [r.state() for r in self.term_running]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.running.restore(state)
        # States from before terms had statistics of their own have none.
        for running, saved in zip(self.term_running, state.get("terms", ()), strict=False):
            running.restore(saved)

    def score(
        self,
        episodes: Episodes,
        *,
        hyper: Shaping,
        world: World,
        known: Mapping[int, list[float]] | None = None,
    ) -> Scores:
        """Score the episodes of this process.

        Nothing is kept of scores before all of them are there, on every process: after a failure
        the state is the one before.

        Args:
            episodes: of this process.
            hyper: how the scores are shaped.
            world: the processes.
            known: scores that are there already, by the place of their term.

        Raises:
            RewardError: a scorer fails, here or on another process, or gave a number that is not
                finite.
        """
        by_term = world.everywhere(
            lambda: self._scores(episodes, world, known or {}), failure=RewardError
        )
        parts: dict[str, Tensor] = {}
        raw_B = torch.zeros(len(episodes), device=world.device)
        sum_B = torch.zeros_like(raw_B)
        for place, (term, scores_B) in enumerate(zip(self.terms, by_term, strict=True)):
            name = (
                term.scorer.name if term.scorer.name not in parts else f"{term.scorer.name}.{place}"
            )
            parts[name] = scores_B
            running = self.term_running[place] if term.normalize else None
            shaped_B = shaped(scores_B, running, clip=term.clip, world=world)
            sum_B = sum_B + term.weight * shaped_B
            # The clip of a normalised term is in units of its deviation, which drifts.
            raw_B = raw_B + term.weight * (shaped_B if running is None else scores_B)
        running = self.running if hyper.normalize_scores else None
        final_B = shaped(sum_B, running, clip=hyper.score_clip, world=world)
        ended_B = torch.tensor([s.ended for s in episodes.samples], device=world.device)
        final_B = end_rule(
            scores_B=final_B, ended_B=ended_B, rule=hyper.end_rule, penalty=hyper.end_penalty
        )
        return Scores(raw_B, final_B, parts)

    def unshaped(self, episodes: Episodes, *, world: World) -> Tensor:
        """Return the weighted sum (B) of the terms as they are, neither normalised nor clipped.

        No statistics are added to, and no end rule is in it.

        Raises:
            RewardError: as `score`.
        """
        by_term = world.everywhere(lambda: self._scores(episodes, world, {}), failure=RewardError)
        sum_B = torch.zeros(len(episodes), device=world.device)
        for term, scores_B in zip(self.terms, by_term, strict=True):
            sum_B = sum_B + term.weight * scores_B
        return sum_B

    def _scores(
        self, episodes: Episodes, world: World, known: Mapping[int, list[float]]
    ) -> list[Tensor]:
        """Return the scores (B) of each term."""
        prompts = [p.prompt for p in episodes.prompts]
        facts = Facts(
            rows=[p.meta for p in episodes.prompts],
            tokens=[len(s.own_ids) for s in episodes.samples],
            ended=[s.ended for s in episodes.samples],
        )
        by_term = []
        for place, term in enumerate(self.terms):
            scores = known.get(place)
            if scores is None:
                scores = scores_of(term.scorer, prompts, episodes.texts, facts)
            scores_B = torch.tensor(scores, dtype=torch.float32, device=world.device)
            if not bool(scores_B.isfinite().all()):
                raise RewardError(
                    f"reward {term.scorer.name} gave a score that is not finite; look at its model"
                )
            by_term.append(scores_B)
        return by_term


def shaped(
    scores_B: Tensor, running: RunningMoments | None, *, clip: float | None, world: World
) -> Tensor:
    """Normalise scores by their statistics so far, these included, and clip them.

    Args:
        scores_B: of this process.
        running: statistics, added to here; None does not normalise.
        clip: largest size; None does not clip.
        world: the processes.
    """
    if running is not None:
        # Of all processes' scores, so that each normalises by the same statistics.
        batch = moments(scores_B, torch.ones_like(scores_B, dtype=torch.bool))
        running.add(Moments(*world.sum(torch.stack(batch)).unbind()))
        scores_B = running.normalized(scores_B)
    return scores_B if clip is None else scores_B.clamp(-clip, clip)
