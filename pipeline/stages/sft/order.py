"""The order of rows and the dropout of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from data.errors import ModelError
from pipeline.training.trl import Order

WINDOW = 50
"""Batches whose rows are sorted by length together."""
_BLOCKS = ("self_attn", "attn", "attention", "mlp", "feed_forward", "ffn", "block_sparse_moe")


class BucketSampler(Order):
    """Row numbers in an order that follows from seed and epoch alone.

    Grouped, rows of similar length share a batch: the rows are shuffled, sorted by length inside
    windows of batches, and the batches shuffled. What fills no batch comes last, as random rows.
    `batch_size` is that of an optimiser step, not of a pass or process, or else the order would
    depend on how a step is computed.

    For many processes `multiple` is the rows of a pass of all of them, and the order is filled up
    to it with the number behind the last row: that of a row without labels.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        grouped: bool,
        multiple: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.multiple = list(lengths), batch_size, multiple
        self.seed, self.grouped, self.epoch = seed, grouped, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.fill

    @property
    def fill(self) -> int:
        """How often the row without labels comes, so that all processes pass equally often."""
        return -len(self.lengths) % self.multiple

    def __iter__(self) -> Iterator[int]:
        return iter(self._order() + [len(self.lengths)] * self.fill)

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.grouped:
            return order
        size = self.batch_size
        full = len(order) - len(order) % size
        batches: list[list[int]] = []
        for start in range(0, full, size * WINDOW):
            window = order[start : min(start + size * WINDOW, full)]
            window.sort(key=lambda row: self.lengths[row])
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        places = torch.randperm(len(batches), generator=generator).tolist()
        return [row for place in places for row in batches[place]] + order[full:]


def add_residual_dropout(model: nn.Module, share: float) -> None:
    """Drop a share of what each attention and feed-forward block adds to the residual stream.

    Done by hooks while the model is in training mode, so that it works for architectures that
    have no such dropout themselves, and nothing of it is saved.

    Raises:
        ModelError: no such block is found.
    """

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (functional.dropout(output[0], share), *output[1:])
        return functional.dropout(output, share)

    layers = [
        child
        for layer in model.modules()
        for name, child in layer.named_children()
        if name in _BLOCKS and any(other in _BLOCKS for other in _names_beside(layer, name))
    ]
    if not layers:
        raise ModelError(
            f"dropout: {type(model).__name__} has no attention and feed-forward blocks that we "
            "know; set dropout: 0"
        )
    for block in layers:
        block.register_forward_hook(drop)


def _names_beside(layer: nn.Module, name: str) -> list[str]:
    return [other for other, _ in layer.named_children() if other != name]
