"""Token ids as the tensors that a reward model takes.

Shapes: S sequences, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reward.learned.encoding import Pair
from reward.network.packed_trees import pack_trees


def collate(
    trees: Sequence[Sequence[Sequence[int]]],
    *,
    as_trees: bool,
    pad_id: int,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> tuple[Any, ...]:
    """Return what `ScoringModule` takes: scores come in the order of trees and their sequences.

    Args:
        trees: token ids of the sequences of each tree.
        as_trees: packed trees if True; if not, one row a sequence.
        pad_id: fills up rows.
        device: where the module is.
        bf16: whether it will compute in bf16.
    """
    if as_trees:
        on_cpu = torch.device(device).type == "cpu"
        return (pack_trees(trees, few_shapes=bf16 and on_cpu).to(device),)
    return pad_sequences([ids for tree in trees for ids in tree], pad_id=pad_id, device=device)


def shift_left(values_SL: Tensor, mask_SL: Tensor) -> tuple[Tensor, Tensor]:
    """Move the real tokens of each row to its start and drop columns that no row uses.

    Args:
        values_SL: their ids, or what else is told of each.
        mask_SL: True on real tokens.
    """
    mask_SL = mask_SL.bool()
    order_SL = (~mask_SL).long().argsort(dim=1, stable=True)
    longest = int(mask_SL.sum(1).max())
    shifted_SL = values_SL.gather(1, order_SL)[:, :longest]
    return shifted_SL, mask_SL.gather(1, order_SL)[:, :longest]


def pad_sequences(
    sequences: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, ...]:
    """Return ids padded on the right, the mask that is True on real tokens, and pairs' segments."""
    longest = max(len(ids) for ids in sequences)
    sizes_S = torch.tensor([len(ids) for ids in sequences])
    mask_SL = torch.arange(longest)[None] < sizes_S[:, None]
    rows = [_filled(sequences, pad_id), mask_SL]
    segments = [ids.segments for ids in sequences if isinstance(ids, Pair) and ids.segments]
    if len(segments) == len(sequences):
        rows.append(_filled(segments, 0))
    return tuple(row_SL.to(device) for row_SL in rows)


def _filled(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
