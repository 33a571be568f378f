"""Where spans of a row stand: apart from each other, anywhere in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.text.packing import Ids

Mask = npt.NDArray[np.bool_]


def split_evenly(total: int, parts: int, generator: np.random.Generator) -> Ids:
    """Return so many whole numbers, 1 at least, that sum up to a total; all choices are as likely.

    Args:
        total: at least `parts`.
        parts: at least 1.
        generator: draws them.
    """
    cuts = np.sort(generator.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)


def place_spans(lengths_K: Ids, size: int, generator: np.random.Generator) -> Ids:
    """Return where each of K spans begins in a row; between two of them a token is left at least.

    T5's own puts a span at the end of every row and none at its beginning; here both may be hidden.

    Args:
        lengths_K: tokens of each span; a row has to have room for them.
        size: tokens of the row.
        generator: draws the places.
    """
    kept = size - int(lengths_K.sum())
    # K + 1 gaps, of which the outer ones may be empty.
    gaps = split_evenly(kept + 2, len(lengths_K) + 1, generator)
    gaps[[0, -1]] -= 1
    return np.cumsum(gaps[:-1]) + np.cumsum(lengths_K) - lengths_K


def covered(starts_K: Ids, lengths_K: Ids, size: int) -> Mask:
    """Return which tokens of a row stand in a span."""
    edges = np.zeros(size + 1, dtype=np.int64)
    np.add.at(edges, starts_K, 1)
    np.add.at(edges, starts_K + lengths_K, -1)
    return np.cumsum(edges[:-1]) > 0
