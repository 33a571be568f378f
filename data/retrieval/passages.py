"""Corpora as passages: texts of a bounded number of words, and where each stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data.records import Record, to_text
from data.retrieval.words import word_ends
from data.sources.folders import TEXT_SUFFIXES, kind_of
from data.sources.read import ReadReport, read_located
from data.sources.source import Source

_SENTENCE = re.compile(r"(?<=[.!?。])[\"')\]”’]*\s+|\n+|(?<=。)")


class Passage(NamedTuple):
    """A part of a record's text, and its file with line or row, or its part of the world."""

    text: str
    where: str


def read_passages(
    sources: Sequence[Source], *, words: int, reports: list[ReadReport]
) -> Iterator[Passage]:
    """Yield the passages of corpora, each text once, where it stands first.

    Args:
        sources: what is read; any kind of row.
        words: most words of a passage.
        reports: gets the report of each source.

    Raises:
        SourceError: a source can't be read, or is empty.
    """
    seen: set[str] = set()
    for source in sources:
        reports.append(ReadReport())
        for where, record in read_located(source, report=reports[-1]):
            for passage in passages_of(record, where, words=words):
                if passage.text not in seen:
                    seen.add(passage.text)
                    yield passage


def passages_of(record: Record, where: str, *, words: int) -> Iterator[Passage]:
    """Yield the passages of a record: whole sentences and lines, as many as fit, else parts."""
    text = to_text(record)
    file, _, line = where.rpartition(":")
    counts_lines = kind_of(file) in TEXT_SUFFIXES and line.isdigit()
    at, lines = 0, int(line) if counts_lines else 0
    for start, end in _spans(text, words):
        part = text[start:end]
        if passage := " ".join(part.split()):
            first = start + len(part) - len(part.lstrip())
            lines, at = lines + text.count("\n", at, first), first
            yield Passage(passage, f"{file}:{lines}" if counts_lines else where)


def _spans(text: str, words: int) -> Iterator[tuple[int, int]]:
    """Yield where passages begin and end: at ends of sentences, and inside those of more words."""
    begun, held = 0, 0
    for start, end in _sentences(text):
        ends = word_ends(text[start:end])
        if held and held + len(ends) > words:
            yield begun, start
            begun, held = start, 0
        for place in range(words, len(ends), words):
            cut = start + ends[place - 1]
            yield begun, cut
            begun = cut
        held += len(ends) - len(ends[:-1]) // words * words
    if held:
        yield begun, len(text)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _SENTENCE.finditer(text):
        yield start, match.end()
        start = match.end()
    yield start, len(text)
