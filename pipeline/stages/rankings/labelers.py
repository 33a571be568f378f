"""Who ranks completions: one small interface, so that other annotators can be plugged in.

A labeler is given prompts with their distinct completions and returns dense ranks, 1 the best,
equal ranks for ties. It may be asked in several batches, and again for a batch after a run was cut
off; it must then answer the same, or know from the id that it has answered already. People who
rank through a label service fit behind the same two members.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data.records import Prompt, Ranking, dense_ranks, prompt_hash
from reward.scorer import Facts, Scorer, scores_of


@dataclass(frozen=True)
class Unranked:
    """The distinct completions of one prompt, to be ranked.

    Attributes:
        prompt: what was answered.
        completions: the answers, at least two.
        id: the same whenever the stage is run with the same settings.
        ended: whether each completion ended by itself.
        policies: who wrote each completion.
        meta: carried into the ranking.
    """

    prompt: Prompt
    completions: list[str]
    id: str
    ended: list[bool] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def ranked(self, ranks: list[int], annotator: str) -> Ranking:
        """Return the record with its ranks."""
        return Ranking(
            prompt=self.prompt,
            completions=self.completions,
            ranks=ranks,
            id=self.id,
            annotator=annotator,
            policies=self.policies,
            meta=self.meta,
            ended=self.ended,
        )


class Labeler(Protocol):
    """World completions."""

    name: str
    """The annotator, as the rankings name it."""

    def rank(self, items: Sequence[Unranked]) -> list[list[int]]:
        """Return dense ranks for the completions of each item."""
        ...


class GoldLabeler:
    """The embedded world's annotator, with an error of a chosen size; of `truth` alone or of all.

    The errors of an item follow from the seed, its id and prompt, not from what was ranked before.
    """

    def __init__(self, *, world_seed: int, noise: float, seed: int, truth: bool = False) -> None:
        from data.world.annotator import GoldAnnotator

        self.annotator = GoldAnnotator(world_seed)
        self.noise, self.seed, self.truth = noise, seed, truth
        self.name = "truth" if truth else "gold"

    def rank(self, items: Sequence[Unranked]) -> list[list[int]]:
        """Return dense ranks for the completions of each item."""
        return [
            self.annotator.rank(
                item.prompt,
                item.completions,
                noise=self.noise,
                truth=self.truth,
                rng=random.Random(f"{self.seed} {item.id} {prompt_hash(item.prompt)}"),
            )
            for item in items
        ]


class RewardLabeler:
    """Rewards, added up: the higher the score of a completion, the better its rank."""

    name = "reward"

    def __init__(self, scorer: Scorer, tokens: Callable[[Unranked], list[int]]) -> None:
        self.scorer, self.tokens = scorer, tokens

    def rank(self, items: Sequence[Unranked]) -> list[list[int]]:
        """Return dense ranks for the completions of each item."""
        texts = [text for item in items for text in item.completions]
        facts = Facts(
            rows=[item.meta for item in items for _ in item.completions],
            tokens=[count for item in items for count in self.tokens(item)],
            ended=[ended for item in items for ended in item.ended],
        )
        asked = [item.prompt for item in items for _ in item.completions]
        scores = iter(scores_of(self.scorer, asked, texts, facts))
        return [dense_ranks([-next(scores) for _ in item.completions]) for item in items]
