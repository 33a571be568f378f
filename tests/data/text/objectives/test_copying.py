"""What a reader without language says of hidden tokens: values worked by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.text.objectives.copying import NOTHING, copy_left, copy_on, count_on

START, BOS, END, MASK = 90, 91, 92, 93


def rows(*ids: int) -> np.ndarray:
    return np.array([ids], dtype=np.int64)


def test_masked_rows_tell_what_stands_in_them() -> None:
    assert copy_left(rows(5, MASK, 7), MASK).tolist() == [[5, NOTHING, 7]]


def test_a_hidden_span_is_passed_over() -> None:
    read = rows(BOS, 1, 2, MASK, 5, END)
    given = rows(START, BOS, 1, 2, 3, 4, 5)
    # 3 and 4 are hidden behind the mask: 5 is said until it has come.
    assert copy_on(read, given, MASK).tolist() == [[BOS, 1, 2, 5, 5, 5, END]]


def test_shuffled_sentences_are_found_by_their_words() -> None:
    read = rows(BOS, 4, 5, 9, 1, 2, 9, END)
    given = rows(START, BOS, 1, 2, 9, 4, 5, 9)
    # Wrong where a sentence begins and at its end: the run `1 2 9` is followed by the end.
    assert copy_on(read, given, MASK).tolist() == [[BOS, 4, 2, 9, END, 5, 9, 1]]


def test_a_mask_at_the_end_says_nothing() -> None:
    assert copy_on(rows(1, MASK), rows(START, 1), MASK).tolist() == [[1, NOTHING]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_a_row_that_was_not_spoiled_is_copied_whole(ids: list[int]) -> None:
    assert copy_on(rows(*ids), rows(START, *ids[:-1]), MASK).tolist() == [ids]


def test_rows_of_a_batch_are_read_each_by_itself() -> None:
    read = np.array([[1, 2, 3, 0], [3, 2, 1, 4]])
    given = np.array([[START, 1, 2], [START, 3, 2]])
    alone = [copy_on(read[n : n + 1], given[n : n + 1], MASK)[0].tolist() for n in (0, 1)]
    assert copy_on(read, given, MASK).tolist() == alone == [[1, 2, 3], [3, 2, 1]]


def test_sentinels_come_in_their_order() -> None:
    sentinels = np.array([70, 71, 72, 73])
    read = rows(1, 70, 4, 5, 71, 8)
    given = rows(START, 70, 2, 3, 71, 6, 7)
    told = [[70, NOTHING, 71, 71, NOTHING, END, END]]
    assert count_on(read, given, sentinels, END).tolist() == told
