"""Which rankings are held out, which are seen at which step, and in which micro-batch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from data.errors import SourceError
from data.records import Ranking, prompt_hash
from reward.encoding import Encoder
from reward.losses import Ties, has_comparable_pair

T = TypeVar("T")


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking as token ids, ready for the model.

    Attributes:
        sequences: ids of the prompt with each completion.
        ranks: their ranks, 1 is best.
    """

    sequences: list[list[int]]
    ranks: list[int]

    @property
    def cost(self) -> int:
        """Tokens of its rows when padded to its longest."""
        return len(self.sequences) * self.longest

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return max(len(ids) for ids in self.sequences)


def encode_rankings(
    rankings: Sequence[Ranking], *, encoder: Encoder, ties: Ties = "drop"
) -> tuple[list[EncodedRanking], int]:
    """Encode the rankings that teach anything.

    Returns:
        The encoded rankings, and how many were dropped because all their completions tie.
    """
    useful = [r for r in rankings if has_comparable_pair(r.ranks, ties=ties)]
    encoded = [
        EncodedRanking([encoder.encode(r.prompt, c) for c in r.completions], list(r.ranks))
        for r in useful
    ]
    return encoded, len(rankings) - len(useful)


def split_by_prompt(
    rankings: Sequence[Ranking], *, share: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """Split into training and held-out rankings, all rankings of a prompt on one side.

    Which prompts are held out depends on the seed and the prompts alone, not on their order.

    Args:
        rankings: any rankings; a prompt may occur more than once, with several annotators.
        share: of the prompts to hold out; above 0 at least one is.
        seed: another seed holds out others.

    Raises:
        SourceError: too few prompts to have both sides.
    """
    keys = [prompt_hash(r.prompt) for r in rankings]
    if share == 0:
        return list(rankings), []
    order = sorted(set(keys), key=lambda k: hashlib.sha256(f"{seed} {k}".encode()).digest())
    n_heldout = max(1, round(share * len(order)))
    if n_heldout >= len(order):
        raise SourceError(
            f"{len(order)} prompts with rankings are too few to hold out a share of {share:g}; "
            "give more rankings or a smaller heldout_share"
        )
    held = set(order[:n_heldout])
    training = [r for r, key in zip(rankings, keys, strict=True) if key not in held]
    heldout = [r for r, key in zip(rankings, keys, strict=True) if key in held]
    return training, heldout


def step_indices(*, n_prompts: int, prompts_per_step: int, step: int, seed: int) -> list[int]:
    """Return the prompts of a step, counted from 0: an epoch is a permutation cut into steps.

    It depends on nothing but its arguments, so that a resumed run sees what it would have seen.
    The last step of an epoch takes what is left.
    """
    per_epoch = steps_per_epoch(n_prompts=n_prompts, prompts_per_step=prompts_per_step)
    epoch, place = divmod(step, per_epoch)
    order = list(range(n_prompts))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[place * prompts_per_step : (place + 1) * prompts_per_step]


def steps_per_epoch(*, n_prompts: int, prompts_per_step: int) -> int:
    """Return the number of steps that see every prompt once."""
    return -(-n_prompts // prompts_per_step)


def micro_batches(
    rankings: Sequence[EncodedRanking], *, tokens: int, world_size: int = 1
) -> list[list[list[int]]]:
    """Deal the rankings of a step to processes and cut each one's share into micro-batches.

    Rankings of like length come together. A ranking is never cut, so one that is larger than the
    budget makes a micro-batch of its own. All processes get the same number of micro-batches, some
    of which may be empty, so that sharded models can gather their weights in step.

    Args:
        rankings: those of one step.
        tokens: padded tokens that a micro-batch may hold.
        world_size: number of processes.

    Returns:
        For each process its micro-batches, as indices into `rankings`.
    """
    order = sorted(range(len(rankings)), key=lambda i: (-rankings[i].longest, i))
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in order:
        lightest = loads.index(min(loads))
        shares[lightest].append(index)
        loads[lightest] += rankings[index].cost
    plans = [_cut(rankings, share, tokens) for share in shares]
    most = max(len(plan) for plan in plans)
    return [plan + [[] for _ in range(most - len(plan))] for plan in plans]


def _cut(rankings: Sequence[EncodedRanking], order: list[int], tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    rows = longest = 0
    for index in order:
        ranking = rankings[index]
        new_rows = rows + len(ranking.sequences)
        new_longest = max(longest, ranking.longest)
        if batches and new_rows * new_longest <= tokens:
            batches[-1].append(index)
            rows, longest = new_rows, new_longest
        else:
            batches.append([index])
            rows, longest = len(ranking.sequences), ranking.longest
    return batches
