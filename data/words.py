"""Numbers with their nouns, for lines that people read."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 row", "2 rows", "1,000 rows"; the plural is given where it ends in no mere s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
