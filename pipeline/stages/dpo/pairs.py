"""Pairs of answers out of rankings: each once, and in rounds that each prompt gives one to."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, count, islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch.utils.data import Dataset

from data.errors import ControlTokenError, SourceError
from data.text.chat import render_prompt, spelled_line
from data.text.prompt_notes import PromptNotes
from data.words import counted
from pipeline.training.trl import Order
from reward.learned.encoding import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.records import Ranking


class Pair(NamedTuple):
    """Two answers to a prompt, as token ids, and how likely the first is the better one."""

    prompt: list[int]
    first: list[int]
    second: list[int]
    probability: float


class Pairs(Dataset[dict[str, list[int]]]):
    """The pairs of rankings; row 2n is pair n with the first answer chosen, 2n + 1 turned round.

    Attributes:
        pairs: all of them.
        of: the numbers of each ranking's pairs.
        total_dataset_length: rows of a whole training, as accelerate takes it.
    """

    total_dataset_length: int

    def __init__(self, by_ranking: Sequence[Sequence[Pair]]) -> None:
        self.pairs: list[Pair] = []
        self.of: list[range] = []
        for own in by_ranking:
            self.of.append(range(len(self.pairs), len(self.pairs) + len(own)))
            self.pairs += own

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        number, turned = divmod(place, 2)
        prompt, first, second, _ = self.pairs[number]
        chosen, rejected = (second, first) if turned else (first, second)
        return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}

    @property
    def rounds(self) -> int:
        """Rounds after which each pair has come."""
        return max(map(len, self.of), default=0)

    @property
    def per_epoch(self) -> int:
        """Rows of an epoch: of each ranking as many as the one with most pairs has."""
        return self.rounds * len(self.of)

    def round(self, number: int, *, seed: int) -> list[int]:
        """Return the rows of a round: each ranking gives its next pair, in an order drawn anew.

        So that a prompt counts once whatever its number of answers. Of a pair with a soft label, or
        a tie that counts half, the better one is drawn by its probability.
        """
        draw = random.Random(f"{seed}/{number}")
        rows = []
        for own in draw.sample(self.of, len(self.of)):
            pair = own[number % len(own)]
            rows.append(2 * pair + (draw.random() >= self.pairs[pair].probability))
        return rows

    def epoch(self, *, seed: int) -> list[int]:
        """Return the rows of the first epoch."""
        return [row for number in range(self.rounds) for row in self.round(number, seed=seed)]


class Rounds(Order):
    """So many rows of round after round: the rows of a step follow from the seed alone.

    All epochs are one, which ends with a full batch, so that no step has fewer rows than others.
    """

    def __init__(self, pairs: Pairs, *, size: int, seed: int) -> None:
        self.pairs, self.size, self.seed = pairs, size, seed

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        rows = (row for number in count() for row in self.pairs.round(number, seed=self.seed))
        return islice(rows, self.size)


def total_steps(pairs: Pairs, *, epochs: float, batch_size: int) -> int:
    """Return the steps of some epochs, the last one filled up."""
    return max(1, math.ceil(epochs * pairs.per_epoch / batch_size))


@dataclass
class PairMaker:
    """Makes rankings into pairs of token ids, and counts what is lost on the way.

    Attributes:
        tokenizer: the policy's.
        max_length: longest prompt with answer; the pairs of a longer one are left out.
        ties: whether tied pairs are left out, or either is the better one by one half.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    ties: Literal["drop", "half"] = "drop"
    answers: int = 0
    too_long: int = 0
    tied: int = 0
    unreadable: int = 0
    notes: PromptNotes = field(default_factory=PromptNotes)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.tokenizer, max_length=10**9)

    def pairs(self, rankings: Sequence[Ranking], *, soft: bool = True) -> Pairs:
        """Return the pairs of rankings, those without any left out.

        Args:
            rankings: of the same prompt or not.
            soft: by soft labels where there are some, and ties as told; else by ranks alone.
        """
        made = (self._of(ranking, soft) for ranking in rankings)
        return Pairs([own for own in made if own])

    def _of(self, ranking: Ranking, soft: bool) -> list[Pair]:
        try:
            prompt = list(render_prompt(self.tokenizer, ranking.prompt))
            answers = [
                self.encoder.encode(ranking.prompt, text, ended=ended)[len(prompt) :]
                for text, ended in zip(ranking.completions, ranking.endings, strict=True)
            ]
        except ControlTokenError:
            self.unreadable += 1
            return []
        self.notes.take(self.tokenizer, ranking.prompt)
        fits = [len(prompt) + len(answer) <= self.max_length for answer in answers]
        self.answers += len(answers)
        self.too_long += fits.count(False)
        found = [
            Pair(prompt, answers[i], answers[j], _probability(ranking, i, j, soft=soft))
            for i, j in combinations(range(len(answers)), 2)
            if fits[i] and fits[j]
        ]
        tied_out = self.ties == "drop" or not soft
        own = [pair for pair in found if pair.probability != 0.5 or not tied_out]
        self.tied += bool(found) and not own
        # Else the first round would take the first two answers of each prompt.
        return random.Random(str(prompt)).sample(own, len(own))

    def lines(self) -> list[str]:
        """Return what was lost as lines for the console."""
        lost = (
            (self.tied, "dropped: all completions tie"),
            (self.unreadable, "dropped: a text spells a control token that can't be kept as text"),
        )
        told = [f"{counted(number, 'ranking')} {why}" for number, why in lost if number]
        if self.too_long:
            told.append(
                f"{self.too_long:,} of {self.answers:,} completions left out: with their prompt "
                f"they are longer than {self.max_length} tokens"
            )
        if self.encoder.spelling:
            told.append(spelled_line(self.encoder.spelling, "texts"))
        for what, number in self.notes.not_shown.most_common():
            told.append(f"the chat template leaves out {what} of {number:,} rankings' prompts")
        return told

    def require_few_too_long(self, share: float, *, stage: str) -> None:
        """Refuse to go on where more than a share of the completions were too long.

        Raises:
            SourceError: with both numbers and the way out.
        """
        if self.too_long > share * self.answers:
            raise SourceError(
                f"stage {stage}: {self.too_long} of {self.answers} completions are longer than "
                f"max_length {self.max_length} with their prompt, more than max_too_long_share "
                f"{share:g} allows; raise max_length, or that share to go on without them"
            )


def _probability(ranking: Ranking, i: int, j: int, *, soft: bool) -> float:
    if soft and ranking.probabilities:
        return ranking.probabilities[i][j]
    ahead = ranking.ranks[j] - ranking.ranks[i]
    return 0.5 if ahead == 0 else float(ahead > 0)
