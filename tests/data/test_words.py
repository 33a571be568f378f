"""Nouns after numbers."""

from __future__ import annotations

from data.words import counted


def test_one_is_singular_and_thousands_are_told_apart() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 1000)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,000 rows",
    ]
    assert counted(2, "entry", "entries") == "2 entries"
    assert counted(1, "entry", "entries") == "1 entry"
