"""Attention within trees on GPUs, by torch's flex attention on the packed tokens themselves.

The mask is told as a rule, so that no block is filled up and no mask is held. Where it is compiled
(on GPUs) it skips what the rule leaves out; elsewhere torch computes all scores: that is for tests.

Whether a device's kernel is right is tried on a few tokens, forward and backward, beside the blocks
that every device has (see `reward.network.tree_attention`), and not believed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


def serves(device: torch.device) -> bool:
    """Tell whether a kind of device has a kernel for it, both ways."""
    return _compiles(device)


def _compiles(device: torch.device) -> bool:
    return device.type == "cuda"


def block_mask(tree_T: Tensor, branch_T: Tensor, positions_T: Tensor) -> BlockMask:
    """Return the rule by which packed tokens attend.

    Args:
        tree_T: tree of each token.
        branch_T: its branch, -1 in a prefix.
        positions_T: its place in its own sequence.
    """

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Of its tree: the prefix and its own branch, up to its own place.
        same = (branch_T[key] == -1) | (branch_T[key] == branch_T[query])
        return (tree_T[query] == tree_T[key]) & same & (positions_T[key] <= positions_T[query])

    size = len(tree_T)
    make = (
        torch.compile(create_block_mask, dynamic=True)
        if _compiles(tree_T.device)
        else create_block_mask
    )
    made: BlockMask = make(sees, None, None, size, size, device=tree_T.device)
    return made


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Any:
    """Attend among packed tokens by the rule of `block_mask`.

    Queries are (1, h, T, d), keys and values (1, k, T, d), k a divisor of h; gives (1, T, h, d).
    """
    low = torch.get_autocast_dtype(query.device.type)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = query.to(low), key.to(low), value.to(low)
    kernel = _compiled() if _compiles(query.device) else flex_attention
    shared = query.shape[1] != key.shape[1]
    mixed = kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=shared)
    return mixed.transpose(1, 2)
