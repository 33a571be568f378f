"""Words by which passages are found: nothing that is short is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.retrieval.words import word_ends, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is 7 + 3?", ["what", "is", "7", "+", "3"]),
        ("7-3, 7 - 3 and a well-known B", ["7", "-", "3", "7", "-", "3", "and", "a", "well",
                                           "known", "b"]),
        ("$1,200.50 of 1,200 or 3.14.", ["$", "1200.50", "of", "1200", "or", "3.14"]),
        ("The Who, by U2 and Zoë's X", ["the", "who", "by", "u", "2", "and", "zoë", "s", "x"]),
        ("ＡＢ Straße", ["ab", "strasse"]),
        ("東京は2つ", ["東", "京", "は", "2", "つ"]),
        ("snake_case C++", ["snake", "case", "c", "+", "+"]),
        ("", []),
        ("... !?", []),
    ],
)  # fmt: skip
def test_short_names_numbers_and_signs_are_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_a_long_run_is_cut_into_words() -> None:
    assert [len(word) for word in words_of("x" * 150)] == [64, 64, 22]
    assert [len(word) for word in words_of("7" * 150)] == [64, 64, 22]


@given(st.text())
def test_case_changes_no_word_and_ends_lie_in_the_text(text: str) -> None:
    assert words_of(text.upper().lower()) == words_of(text.upper().lower().casefold())
    ends = word_ends(text)
    assert ends == sorted(set(ends)) and all(0 < end <= len(text) for end in ends)
