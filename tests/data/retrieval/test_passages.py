"""Corpora as passages: bounded, whole sentences where they fit, and the way back to each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import SourceError
from data.records import Document
from data.retrieval.passages import Passage, passages_of, read_passages
from data.retrieval.words import words_of
from data.sources.read import ReadReport
from data.sources.source import Source


def read(path: Path | str, words: int = 8) -> list[Passage]:
    return [*read_passages([Source(path=str(path))], words=words, reports=[])]


def test_a_passage_of_a_text_file_has_its_line(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\nOne two. Three\nfour five.\n\nSix seven eight.<|endoftext|>\nNine.\n")
    assert read(book, words=4) == [
        Passage("One two. Three", f"{book}:3"),
        Passage("four five.", f"{book}:4"),
        Passage("Six seven eight.", f"{book}:6"),
        Passage("Nine.", f"{book}:7"),
    ]


def test_a_passage_of_rows_has_its_row_whatever_the_row_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "inner").mkdir(parents=True)
    rows = [{"text": "Alpha.\nBeta.", "id": "mine"}, {"text": "Gamma."}]
    for place in (folder, folder / "inner"):
        lines = [json.dumps({**row, "text": f"{place.name} {row['text']}"}) for row in rows]
        (place / "rows.jsonl").write_text("\n".join(lines))
    found = read(folder)
    assert {passage.where for passage in found} == {
        f"{place}/rows.jsonl:{line}" for place in (folder, folder / "inner") for line in (1, 2)
    }
    assert found[0].text.endswith("Alpha. Beta.")


def test_the_world_is_a_corpus_and_equal_passages_are_one() -> None:
    reports: list[ReadReport] = []
    source = Source(world="corpus_heldout")
    once = [*read_passages([source], words=20, reports=reports)]
    twice = [*read_passages([source, source], words=20, reports=reports)]
    assert once == twice and len({passage.text for passage in once}) == len(once)
    assert once[0].where == "world:corpus_heldout/0"
    assert [report.records for report in reports] == [150] * 3


def test_a_sentence_too_long_is_cut_between_words() -> None:
    found = [*passages_of(Document("one two three four five six. Seven"), "x:1", words=4)]
    assert [passage.text for passage in found] == ["one two three four", "five six. Seven"]


@given(st.text(alphabet="ab 1.\n!é東", max_size=80), st.integers(1, 5))
def test_no_word_is_lost_and_none_has_more_than_its_bound(text: str, words: int) -> None:
    found = [*passages_of(Document(text), "x:1", words=words)]
    assert all(1 <= len(words_of(passage.text)) <= words for passage in found if passage.text)
    assert "".join("".join(passage.text.split()) for passage in found).strip() in "".join(
        text.split()
    )
    assert sum(len(words_of(passage.text)) for passage in found) == len(words_of(text))


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(SourceError, match=r"bad\.txt is not UTF-8 text.* in line 2"):
        read(bad)
