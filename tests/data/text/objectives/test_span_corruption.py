"""Span corruption: input and target together are the text, and rows are full."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.text.objectives.span_corruption import (
    hide_spans,
    raw_length,
    restore_spans,
    span_counts,
)

SENTINELS = np.arange(1000, 1200)
SHARES = st.sampled_from([0.1, 0.15, 0.3, 0.5])
MEANS = st.sampled_from([1.0, 1.5, 3.0, 8.0])


@given(
    ids=st.lists(st.integers(0, 50), min_size=2, max_size=120),
    share=SHARES,
    mean=MEANS,
    seed=st.integers(0, 2**32 - 1),
)
def test_input_and_target_give_the_text_back(
    ids: list[int], share: float, mean: float, seed: int
) -> None:
    text = np.asarray(ids)
    row = hide_spans(
        text,
        sentinels=SENTINELS,
        share=share,
        mean_span=mean,
        generator=np.random.default_rng(seed),
    )
    assert restore_spans(row, SENTINELS).tolist() == ids
    hidden, spans = span_counts(len(ids), share=share, mean_span=mean)
    assert (len(row.input), len(row.target)) == (len(ids) - hidden + spans, hidden + spans)
    marks = row.input[row.input >= 1000]
    assert marks.tolist() == SENTINELS[:spans].tolist() == row.target[row.target >= 1000].tolist()
    assert not (np.diff(np.flatnonzero(row.input >= 1000)) == 1).any()  # spans stay apart


@given(row=st.integers(2, 600), share=SHARES, mean=MEANS)
def test_packed_row_is_exactly_full(row: int, share: float, mean: float) -> None:
    length = raw_length(row, share=share, mean_span=mean)
    hidden, spans = span_counts(length, share=share, mean_span=mean)
    assert length - hidden + spans == row


def test_lengths_are_those_of_t5() -> None:
    # t5's random_spans_helper(512, .15, 3, 1, 1): 568 tokens of text, targets of 114,
    # their end tokens counted
    assert raw_length(511, share=0.15, mean_span=3) == 568
    assert sum(span_counts(568, share=0.15, mean_span=3)) + 1 == 114


def test_every_place_of_a_row_may_be_hidden() -> None:
    seen = np.zeros(20, dtype=bool)
    for seed in range(200):
        row = hide_spans(
            np.arange(20),
            sentinels=SENTINELS,
            share=0.15,
            mean_span=3,
            generator=np.random.default_rng(seed),
        )
        seen[row.target[row.target < 1000]] = True
    assert seen.all()
