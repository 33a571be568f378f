"""Span corruption: spans of a row are hidden behind sentinels, and written out after them.

T5 (Raffel et al. 2020, 3.1.4): 15 % of the tokens, in spans of 3 on average. Of the text
`a b c d e f g` with `b c` and `f` hidden the input is `a <0> d e <1> g` and the target
`<0> b c <1> f`, both with an end token behind.

Departure: a span may stand anywhere in a row; T5's rows all begin with a kept and end with a hidden
token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from data.text.objectives.spans import covered, place_spans, split_evenly
from data.text.packing import Ids


class SpanCounts(NamedTuple):
    """How many tokens of a row are hidden, in how many spans."""

    hidden: int
    spans: int


class CorruptedRow(NamedTuple):
    """What goes in and what is to be written, without end tokens."""

    input: Ids
    target: Ids


def span_counts(length: int, *, share: float, mean_span: float) -> SpanCounts:
    """Return what is hidden of a row of so many tokens, two at least."""
    hidden = min(max(1, math.floor(length * share + 0.5)), length - 1)
    spans = max(1, math.floor(hidden / mean_span + 0.5))
    return SpanCounts(hidden, min(spans, hidden, length - hidden + 1))


def raw_length(row_length: int, *, share: float, mean_span: float) -> int:
    """Return the tokens of text whose input is exactly a row of `row_length`, 2 tokens at least.

    As a text grows by a token its input grows by one or none, so that none is passed over; of the
    texts that give the same input the longest is taken. `share` is at most a half.
    """

    def full(length: int) -> int:
        hidden, spans = span_counts(length, share=share, mean_span=mean_span)
        return length - hidden + spans

    length = 2
    while full(length + 1) <= row_length:
        length += 1
    return length


def hide_spans(
    ids_T: Ids,
    *,
    sentinels: Ids,
    share: float,
    mean_span: float,
    generator: np.random.Generator,
) -> CorruptedRow:
    """Hide spans of a row of two tokens or more.

    Args:
        ids_T: the row, without any sentinel.
        sentinels: ids that stand for the first, second ... span; as many as spans at least.
        share: of the tokens that are hidden.
        mean_span: mean tokens of a span.
        generator: draws lengths and places.
    """
    hidden, spans = span_counts(len(ids_T), share=share, mean_span=mean_span)
    lengths_K = split_evenly(hidden, spans, generator)
    starts_K = place_spans(lengths_K, len(ids_T), generator)
    hidden_T = covered(starts_K, lengths_K, len(ids_T))
    marks_K = sentinels[:spans]
    marked_T = ids_T.copy()
    marked_T[starts_K] = marks_K
    kept_T = ~hidden_T
    kept_T[starts_K] = True
    first_hidden = np.cumsum(lengths_K) - lengths_K  # of each span among the hidden tokens
    target = np.insert(ids_T[hidden_T], first_hidden, marks_K)
    return CorruptedRow(marked_T[kept_T], target)


def restore_spans(row: CorruptedRow, sentinels: Ids) -> Ids:
    """Return the text that an input and its target were made of."""
    marks = np.flatnonzero(np.isin(row.target, sentinels))
    stops = [*marks[1:], len(row.target)]
    spans = {
        int(row.target[start]): row.target[start + 1 : stop]
        for start, stop in zip(marks, stops, strict=True)
    }
    parts = [spans.get(int(token), np.array([token])) for token in row.input]
    return np.concatenate(parts).astype(np.int64)
