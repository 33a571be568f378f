"""How many rows a forward pass takes so that its logits fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MOST_LOGITS = 60_000_000
"""Logits computed at a time at most: 240 MB in fp32."""


def batches_by_length(lengths: Sequence[int], most: int, *, vocabulary: int) -> Iterator[list[int]]:
    """Yield row numbers, the longest rows first, as many as their logits fit the memory.

    Args:
        lengths: tokens of each row.
        most: rows of a batch at most.
        vocabulary: logits of a token.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    at = 0
    while at < len(order):
        rows = max(1, min(most, MOST_LOGITS // (lengths[order[at]] * vocabulary)))
        yield order[at : at + rows]
        at += rows
