"""Distinct-n and repetition, counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.judge.diversity import distinct, repetition, words

TEXTS = st.lists(st.text("ab ", max_size=20), max_size=8)


def test_words_and_marks_in_lower_case() -> None:
    assert words("I don't know, Ada.") == ["i", "don", "'", "t", "know", ",", "ada", "."]


def test_distinct_counts_over_all_texts() -> None:
    texts = ["the cat sat", "the cat ran"]
    assert distinct(texts, 1) == 4 / 6  # the cat sat ran, of six
    assert distinct(texts, 2) == 3 / 4  # "the cat" twice
    assert distinct(texts, 3) == 1.0
    assert distinct(texts, 4) is None


def test_ngrams_do_not_cross_texts() -> None:
    assert distinct(["a", "b"], 2) is None


def test_repetition_counts_runs_seen_before() -> None:
    # "a b a b a b": runs aba, bab, aba, bab; two of four stood there before.
    assert repetition("a b a b a b") == 0.5
    assert repetition("a b c d e") == 0.0
    assert repetition("no no") == 0.0


@given(TEXTS)
def test_saying_everything_twice_halves_distinct(texts: list[str]) -> None:
    once = distinct(texts, 2)
    twice = distinct(texts * 2, 2)
    assert twice == (None if once is None else pytest.approx(once / 2))


@given(st.text(max_size=200))
def test_repetition_is_a_share(text: str) -> None:
    assert 0 <= repetition(text) < 1
