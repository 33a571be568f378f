"""What an objective is to the training loop, and the rows that it makes batches of.

Shapes: B rows of T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.text.objectives.copying import NOTHING

if TYPE_CHECKING:
    from data.text.packing import Chunk, Ids, PackedShards

B = TypeVar("B", bound=NamedTuple)

IGNORED = -100
"""Target that counts for nothing."""
HELDOUT = -1
"""Epoch of held-out rows: what is drawn for them is the same each time."""


class Row(NamedTuple):
    """One row of text, and in which epoch it is learned.

    Attributes:
        shards: that it is of.
        number: in them.
        epoch: counted from 0, or `HELDOUT`.
    """

    shards: PackedShards
    number: int
    epoch: int

    @property
    def chunk(self) -> Chunk:
        """Its tokens."""
        return self.shards[self.number]

    def generator(self, seed: int) -> np.random.Generator:
        """Return what draws for this row in this epoch: the same whenever and wherever asked."""
        # The last number sets these apart from the order of rows, which is drawn of seed and epoch.
        return np.random.default_rng([seed, self.epoch + 1, self.number, 1])


def spread_rows(shards: PackedShards, most: int, *, epoch: int) -> list[Row]:
    """Return so many rows at most, spread evenly."""
    total = len(shards)
    count = min(total, most)
    return [Row(shards, number * total // count, epoch) for number in range(count)]


class Batch(Protocol):
    """Rows as tensors."""

    @property
    def tokens_BT(self) -> Tensor:
        """Ids that go into the model."""
        ...

    def predicted(self) -> int:
        """Return the number of tokens that are predicted."""
        ...

    def learned(self) -> int:
        """Return the number of tokens that speed is told by."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        ...

    def rows(self, start: int, stop: int) -> Self:
        """Return some of the rows."""
        ...


class Objective(Protocol):
    """What is predicted of a row, and how it is judged."""

    def batch(self, rows: Sequence[Row]) -> Any:
        """Return rows as a `Batch`."""
        ...

    def summed_loss(self, model: Any, batch: Any) -> Tensor:
        """Return the loss of all predicted tokens, summed, in nats."""
        ...

    def sums(self, model: Any, groups: Iterable[Sequence[Row]], *, bf16: bool) -> list[float]:
        """Judge a model on groups of rows: figures that add up over processes."""
        ...

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the metrics of such sums."""
        ...


class Asking(Objective, Protocol):
    """An objective that asks for some tokens, and that is made of text with a frame around it."""

    def raw_length(self, row_length: int) -> int:
        """Return the tokens of text that a row is made of."""
        ...

    def copied(self, batch: Any) -> Ids:
        """Return what such a reader says in place of each target, `NOTHING` where it is silent."""
        ...


def on_tensors(batch: B, change: Callable[[Tensor], Tensor]) -> B:
    """Return a batch with its tensors changed, and all else as it is."""
    parts = [change(part) if isinstance(part, Tensor) else part for part in batch]
    return type(batch)._make(parts)


def stack(rows: Sequence[Ids | Sequence[int]], *, fill: int) -> Tensor:
    """Return rows as a tensor (B, T), the shorter ones filled up."""
    stacked = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = row
    return torch.from_numpy(stacked)


def seen_mask(rows: Sequence[Ids]) -> Tensor | None:
    """Return which places of stacked rows hold tokens (B, T), None where all do."""
    lengths = [len(row) for row in rows]
    if min(lengths) == max(lengths):
        return None
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def grouped(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Yield rows in groups of a size at most."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def floors(objective: Asking, learned: Sequence[Row], judged: Sequence[Row]) -> dict[str, float]:
    """Return how well a reader that knows no language does on what an objective asks of rows.

    `unigram` goes by how often each token is asked for, `copy` by what `copied` says, and where
    that says nothing by the frequencies. Its probability is how often it is right.

    Args:
        objective: makes batches with `targets_BT`.
        learned: rows whose targets are counted, each one more often than it occurs.
        judged: rows whose targets are predicted.
    """
    before_N, copied_N = _asked(objective, learned)
    counts = np.ones(learned[0].shards.about.vocabulary_size)
    counts += np.bincount(before_N, minlength=len(counts))
    shares, most = counts / counts.sum(), counts.argmax()
    right = 1 + (copied_N == before_N).sum()
    trust = right / (2 + (copied_N != NOTHING).sum())
    targets_N, copied_N = _asked(objective, judged)
    share_N, says_N = shares[targets_N], copied_N != NOTHING
    mixed_N = trust * (copied_N == targets_N) + (1 - trust) * share_N
    guess_N = np.where(says_N, copied_N, most)
    return {
        "unigram_loss": float(-np.log(share_N).mean()),
        "unigram_accuracy": float(np.mean(targets_N == most)),
        "copy_loss": float(-np.log(np.where(says_N, mixed_N, share_N)).mean()),
        "copy_accuracy": float(np.mean(targets_N == guess_N)),
    }


def _asked(objective: Asking, rows: Sequence[Row]) -> tuple[Ids, Ids]:
    """Return all ids that are asked for, and what copying says of each."""
    found: list[tuple[Ids, Ids]] = []
    for group in grouped(rows, 64):
        batch = objective.batch(group)
        targets_BT = batch.targets_BT.numpy()
        asked_BT = targets_BT != IGNORED
        found.append((targets_BT[asked_BT], objective.copied(batch)[asked_BT]))
    targets, copied = zip(*found, strict=True)
    return np.concatenate(targets), np.concatenate(copied)
