"""Trees of sequences that begin alike, packed into one row of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

WIDTHS, TOKENS = 8, 64
"""Multiples that blocks and packed tokens are filled up to where shapes shall be few."""


class PackedTrees(NamedTuple):
    """Trees as tensors.

    Attributes:
        ids_T: their tokens, prefixes first; what fills them up stands behind.
        positions_T: place of each token in its own sequence.
        ends_S: where in T each sequence ends.
        prefix_NP: where in T the tokens of each prefix stand; what fills it up may be any place.
        branch_SC: the same of each branch.
        tree_S: which prefix a branch continues.
        mask_S1CK: True where a token of a branch attends, K = P + C: to its prefix, then to its
            own branch; or the same as numbers to add, 0 and minus infinity. None where no tree
            has a prefix.
        unpack_T: place of each packed token among the N * P + S * C of the blocks.
        tree_T: which tree a token belongs to.
        branch_T: which branch, -1 for prefixes.
        rule: by which packed tokens attend, in place of blocks; None takes the blocks.
    """

    ids_T: Tensor
    positions_T: Tensor
    ends_S: Tensor
    prefix_NP: Tensor
    branch_SC: Tensor
    tree_S: Tensor
    mask_S1CK: Tensor | None
    unpack_T: Tensor
    tree_T: Tensor
    branch_T: Tensor
    rule: Any = None

    def made_rule(self) -> Any:
        """Return the rule of `reward.network.flex_attention`, on the device of the tensors."""
        from reward.network.flex_attention import block_mask

        return block_mask(self.tree_T, self.branch_T, self.positions_T)

    def to(self, device: torch.device | str) -> PackedTrees:
        """Return it on a device."""
        tensors = {name: one for name, one in self._asdict().items() if isinstance(one, Tensor)}
        return self._replace(**{name: one.to(device) for name, one in tensors.items()}, rule=None)


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all sequences share; each keeps at least one of its own.

    A single sequence shares nothing.
    """
    if len(sequences) < 2:
        return 0
    first, last = min(map(list, sequences)), max(map(list, sequences))
    longest = min(len(ids) for ids in sequences) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


def tree_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Return the tokens of a tree: its prefix once, and its branches."""
    return sum(len(ids) for ids in sequences) - (len(sequences) - 1) * shared_prefix(sequences)


def group_by_prefix(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group sequences into trees such that many tokens are shared; return their indices.

    Neighbours in alphabetic order are joined, those that share most first, as long as the joined
    tree saves more tokens than its two parts do.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    shared = [shared_prefix([sequences[a], sequences[b]]) for a, b in pairwise(order)]
    # A group is a run of `order`: its first place knows its end and its saving, its last its start.
    ends, starts = list(range(len(order))), list(range(len(order)))
    savings = [0] * len(order)
    for place in sorted(range(len(shared)), key=lambda p: (-shared[p], p)):
        start, end = starts[place], ends[place + 1]
        joined = (end - start) * shared[place]
        if joined > savings[start] + savings[place + 1]:
            ends[start], starts[end], savings[start] = end, start, joined
    groups, start = [], 0
    while start < len(order):
        groups.append(order[start : ends[start] + 1])
        start = ends[start] + 1
    return groups


def pack_trees(
    trees: Sequence[Sequence[Sequence[int]]], *, few_shapes: bool = False
) -> PackedTrees:
    """Pack trees, each given as its whole sequences.

    Args:
        trees: sequences of at least one token; those of a tree may begin alike.
        few_shapes: fill up tokens and blocks, so that many packs have the same shapes. In bf16 on
            a processor oneDNN makes and keeps a program for each shape of a product.
    """
    multiple = WIDTHS if few_shapes else 1
    # A tree is cut where its sequences part: [0, cut) is the prefix, the rest of each a branch.
    cuts = [shared_prefix(tree) for tree in trees]
    prefixes = [list(tree[0][:cut]) for tree, cut in zip(trees, cuts, strict=True)]
    branches = [list(ids[cut:]) for tree, cut in zip(trees, cuts, strict=True) for ids in tree]
    starts = [cut for tree, cut in zip(trees, cuts, strict=True) for _ in tree]
    tree_S = torch.tensor([n for n, tree in enumerate(trees) for _ in tree])
    prefix_NP, prefix_mask_NP = _places(cuts, first=0, multiple=multiple)
    sizes = [len(ids) for ids in branches]
    branch_SC, branch_mask_SC = _places(sizes, first=sum(cuts), multiple=multiple)
    # What fills up T is in no block, so that nothing looks at it; what it sees is of no account.
    filling = -(sum(cuts) + sum(sizes)) % TOKENS if few_shapes else 0
    unpack_T = torch.cat([prefix_mask_NP.flatten(), branch_mask_SC.flatten()]).nonzero()[:, 0]
    width = branch_SC.shape[1]
    owners = [n for n, size in zip(tree_S.tolist(), sizes, strict=True) for _ in range(size)]
    mask_S1CK = None
    if prefix_NP.shape[1]:
        # What fills up a branch stands behind its tokens, where they don't look, and has itself
        # to look at.
        own_CC = torch.ones(width, width, dtype=torch.bool).tril()
        prefix_S1CP = prefix_mask_NP[tree_S][:, None, None].expand(-1, 1, width, -1)
        mask_S1CK = torch.cat([prefix_S1CP, own_CC.expand(len(sizes), 1, -1, -1)], dim=-1)
    return PackedTrees(
        ids_T=pad(torch.tensor([i for ids in (*prefixes, *branches) for i in ids]), (0, filling)),
        positions_T=torch.tensor(
            [i for cut in cuts for i in range(cut)]
            + [at + i for at, size in zip(starts, sizes, strict=True) for i in range(size)]
            + [0] * filling
        ),
        ends_S=torch.tensor(sizes).cumsum(0) + (sum(cuts) - 1),
        prefix_NP=prefix_NP,
        branch_SC=branch_SC,
        tree_S=tree_S,
        mask_S1CK=mask_S1CK,
        unpack_T=pad(unpack_T, (0, filling)),
        tree_T=torch.tensor(
            [n for n, cut in enumerate(cuts) for _ in range(cut)] + owners + [len(trees)] * filling
        ),
        branch_T=torch.tensor(
            [-1] * sum(cuts) + [s for s, n in enumerate(sizes) for _ in range(n)] + [-1] * filling
        ),
    )


def _places(sizes: Sequence[int], *, first: int, multiple: int) -> tuple[Tensor, Tensor]:
    """Return where rows of these sizes stand, one after the other, and the mask of what is real."""
    sizes_R = torch.tensor(sizes)
    columns = torch.arange(multiple * math.ceil(max(sizes) / multiple))[None]
    mask_RW = columns < sizes_R[:, None]
    starts_R = first + sizes_R.cumsum(0) - sizes_R
    return torch.where(mask_RW, starts_R[:, None] + columns, 0), mask_RW
