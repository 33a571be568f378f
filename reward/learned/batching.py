"""Rankings as token ids: which are seen at which step, and in which micro-batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from data.records import Ranking
from reward.learned.encoding import Encoder
from reward.learned.losses import Ties, has_comparable_pair
from reward.network.packed_trees import group_by_prefix, shared_prefix, tree_tokens


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking as token ids, ready for the model.

    Attributes:
        sequences: ids of the prompt with each completion.
        ranks: their ranks, 1 is best.
        probabilities: soft labels, see `data.records.Ranking`; empty where there are none.
    """

    sequences: list[list[int]]
    ranks: list[int]
    probabilities: list[list[float]] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """Tokens of its rows when padded to its longest."""
        return len(self.sequences) * self.longest

    @cached_property
    def tree_cost(self) -> int:
        """Tokens when what its sequences begin with is there once."""
        return tree_tokens(self.sequences)

    @cached_property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return max(len(ids) for ids in self.sequences)


def encode_rankings(
    rankings: Sequence[Ranking], *, encoder: Encoder, ties: Ties = "drop"
) -> tuple[list[EncodedRanking], int]:
    """Encode the rankings that teach anything.

    Returns:
        The encoded rankings, and how many were dropped because all their completions tie and no
        soft labels tell more.
    """
    useful = [
        r for r in rankings if has_comparable_pair(r.ranks, ties=ties, soft=bool(r.probabilities))
    ]
    encoded = [
        EncodedRanking(encoded_completions(r, encoder), list(r.ranks), r.probabilities)
        for r in useful
    ]
    return encoded, len(rankings) - len(useful)


def encoded_completions(ranking: Ranking, encoder: Encoder) -> list[list[int]]:
    """Return the ids of a ranking's completions; one that was cut off gets no mark of an end."""
    return [
        encoder.encode(ranking.prompt, text, ended=ended)
        for text, ended in zip(ranking.completions, ranking.endings, strict=True)
    ]


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
    rankings: Sequence[EncodedRanking], *, tokens: int, world_size: int = 1, trees: bool = False
) -> list[list[list[int]]]:
    """Deal the rankings of a step to processes and cut each one's share into micro-batches.

    Rankings of like length come together. A ranking is never cut, so one that is larger than the
    budget makes a micro-batch of its own. All processes get the same number of micro-batches, some
    of which may be empty, so that sharded models can gather their weights in step.

    Args:
        rankings: those of one step.
        tokens: that a micro-batch may hold, padding included.
        world_size: number of processes.
        trees: whether a ranking is computed as a tree, or as rows padded to the longest.

    Returns:
        For each process its micro-batches, as indices into `rankings`.
    """
    # The longest first, each to the process that has least to do: none waits long for the others.
    costs = [r.tree_cost if trees else r.cost for r in rankings]
    order = sorted(range(len(rankings)), key=lambda i: (-rankings[i].longest, i))
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in order:
        lightest = loads.index(min(loads))
        shares[lightest].append(index)
        loads[lightest] += costs[index]
    plans = []
    for share in shares:
        parts = [
            Part([i], len(rankings[i].sequences), rankings[i].longest, costs[i]) for i in share
        ]
        batches = fill(parts, tokens=tokens, padded=not trees)
        plans.append([[i for part in batch for i in part.members] for batch in batches])
    most = max(len(plan) for plan in plans)
    return [plan + [[] for _ in range(most - len(plan))] for plan in plans]


class Part(NamedTuple):
    """What is not cut: its members, and how many rows, the longest one's and all its tokens."""

    members: list[int]
    rows: int
    longest: int
    tokens: int


def fill(
    parts: Sequence[Part], *, tokens: int, rows: int | None = None, padded: bool
) -> list[list[Part]]:
    """Put parts into batches in their order; one that is too large gets a batch of its own.

    Args:
        parts: longest first.
        tokens: most tokens of a batch.
        rows: most rows of a batch; None for any number.
        padded: whether all rows of a batch are filled up to its longest.
    """
    batches: list[list[Part]] = []
    for part in parts:
        grown = [*batches[-1], part] if batches else [part]
        n_rows = sum(p.rows for p in grown)
        n_tokens = (
            n_rows * max(p.longest for p in grown) if padded else sum(p.tokens for p in grown)
        )
        if batches and n_tokens <= tokens and (rows is None or n_rows <= rows):
            batches[-1] = grown
        else:
            batches.append([part])
    return batches


def scoring_batches(
    sequences: Sequence[Sequence[int]],
    *,
    trees: bool,
    tokens: int = 2**62,
    rows: int | None = None,
) -> list[list[list[int]]]:
    """Cut sequences that are only scored into batches of trees, longest first.

    Args:
        sequences: token ids.
        trees: whether sequences that begin alike share what they begin with; if not, each is a
            tree of its own and a batch is padded to its longest.
        tokens: most tokens of a batch, padding included.
        rows: most sequences of a batch; None for any number.

    Returns:
        Batches of trees, each the indices of its sequences.
    """
    # A tree may be larger than a batch: it is cut into pieces, each of which has the prefix again.
    groups = group_by_prefix(sequences) if trees else [[i] for i in range(len(sequences))]
    parts = []
    for group in groups:
        prefix = shared_prefix([sequences[i] for i in group])
        by_length = sorted(group, key=lambda i: (-len(sequences[i]), i))
        singles = [Part([i], 1, len(sequences[i]), len(sequences[i]) - prefix) for i in by_length]
        for piece in fill(singles, tokens=tokens - prefix, rows=rows, padded=False):
            members = [i for part in piece for i in part.members]
            size = prefix + sum(part.tokens for part in piece)
            parts.append(Part(members, len(members), piece[0].longest, size))
    parts.sort(key=lambda part: (-part.longest, part.members[0]))
    batches = fill(parts, tokens=tokens, rows=rows, padded=not trees)
    return [[part.members for part in batch] for batch in batches]
