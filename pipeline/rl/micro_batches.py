"""How a process's rows are cut into micro-batches: by their number, or by tokens with padding.

By tokens, processes with rows of unlike lengths would make unlike numbers of passes. Sharded
weights (FSDP2) are gathered in each pass, so that who makes one more waits for the others for ever.
Hence all make as many as the one that needs most: the others split pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Limit(NamedTuple):
    """What a micro-batch holds.

    Attributes:
        rows: its number of rows where `tokens` is None.
        tokens: it holds as many rows as fit, each padded to the longest; one at least.
    """

    rows: int
    tokens: int | None = None

    def rows_of(self, width: float) -> int:
        """Return how many rows of a width in tokens a micro-batch holds."""
        return self.rows if self.tokens is None else max(1, int(self.tokens // width))


def cut(lengths: Sequence[int], *, limit: Limit) -> list[range]:
    """Cut rows, longest first, into pieces, each as wide as its first row; return their places."""
    pieces, start = [], 0
    while start < len(lengths):
        end = min(len(lengths), start + limit.rows_of(lengths[start]))
        pieces.append(range(start, end))
        start = end
    return pieces


def split(pieces: Sequence[range], lengths: Sequence[int], *, count: int) -> list[range]:
    """Halve the pieces with the most tokens until there are so many.

    Args:
        pieces: as `cut` gives them.
        lengths: tokens of each row, longest first.
        count: wanted; not above the number of rows.
    """
    assert count <= len(lengths), "a row can't be split"
    halved = list(pieces)
    while len(halved) < count:
        sizes = [len(piece) * lengths[piece.start] if len(piece) > 1 else 0 for piece in halved]
        place = sizes.index(max(sizes))
        largest = halved[place]
        middle = len(largest) // 2
        halved[place : place + 1] = [largest[:middle], largest[middle:]]
    return halved
