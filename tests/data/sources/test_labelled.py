"""Rows with labels as records, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadRowsError
from data.records import Extract, Labelled, Tagged, chat
from data.sources.converting import convert
from data.sources.formats import detect, unused
from data.sources.read import ReadReport, read
from data.sources.source import Source
from data.sources.values import RowDropped, RowError

SPAN = {"start": 0, "end": 3, "label": "person"}


@pytest.mark.parametrize(
    ("name", "row", "record"),
    [
        ("labelled", {"text": "a", "label": 1}, Labelled("a", "1")),
        ("labelled", {"text": "a", "label": 2.0}, Labelled("a", "2")),
        ("labelled", {"question": "a", "answer": "b", "label": True}, Labelled("a", "true", "b")),
        ("labelled", {"prompt": chat("a"), "response": "b", "label": "x"}, Labelled("a", "x", "b")),
        ("labelled", {"text": "a", "pair": "b", "label": " x "}, Labelled("a", "x", "b")),
        (
            "extracts",
            {"question": "q", "context": "a b b", "answer": "b"},
            Extract("q", "a b b", [(2, "b")]),
        ),
        (
            "extracts",
            {"question": "q", "context": "a b b", "answer": " b", "start": 3},
            Extract("q", "a b b", [(4, "b")]),
        ),
        (
            "extracts",
            {
                "question": "q",
                "context": "a b",
                "answers": '{"text": ["b", "a"], "answer_start": [2, 0]}',
            },
            Extract("q", "a b", [(2, "b"), (0, "a")]),
        ),
        (
            "tagged",
            {"tokens": ["Ada", "Finch", "met", "Ben"], "tags": ["B-p", "I-p", "O", "I-p"]},
            Tagged("Ada Finch met Ben", [(0, 9, "p"), (14, 17, "p")]),
        ),
        (
            "tagged",
            {"tokens": '["Ada", "Ben", "x"]', "tags": '["B-p", "B-p", "I-q"]'},
            Tagged("Ada Ben x", [(0, 3, "p"), (4, 7, "p"), (8, 9, "q")]),
        ),
        ("tagged", {"text": "Ada", "spans": [SPAN]}, Tagged("Ada", [(0, 3, "person")])),
    ],
)
def test_rows_become_records(name: str, row: dict[str, Any], record: Any) -> None:
    assert convert(row, name) == record
    assert [*unused(row, name)] == []
    assert [*unused({**row, "note": "x"}, name)] == ["column 'note'"]


@pytest.mark.parametrize(
    ("name", "row", "error", "told"),
    [
        ("labelled", {"text": "a"}, RowError, "no column 'label'; columns: text"),
        ("labelled", {"sentence": "a", "label": 1}, RowError, "no column 'text'"),
        ("labelled", {"text": "a", "label": ["x"]}, RowError, "a list, not one label"),
        ("labelled", {"text": "a", "label": None}, RowDropped, "it has no label"),
        ("labelled", {"text": "", "label": 1}, RowDropped, "the text is empty"),
        ("extracts", {"question": "q", "context": "a", "answer": "b"}, RowDropped, "not stand in"),
        (
            "extracts",
            {"question": "q", "context": "a b", "answer": "b", "start": 1},
            RowError,
            "'b' does not stand at character 1",
        ),
        (
            "extracts",
            {"question": "q", "context": "a", "answers": {"text": [], "answer_start": []}},
            RowDropped,
            "does not answer the question",
        ),
        ("extracts", {"question": "q", "context": "a"}, RowError, "no column 'answer'"),
        ("tagged", {"tokens": ["a"], "tags": ["O", "O"]}, RowError, "1 tokens but 2 tags"),
        ("tagged", {"tokens": ["a"], "tags": [3]}, RowError, "the tag 3 is none of O, B-label"),
        ("tagged", {"text": "Ada"}, RowError, "no column 'spans'"),
        ("tagged", {"text": "Ad", "spans": [SPAN]}, RowError, "0 to 3 lies outside of its 2 char"),
        ("tagged", {"text": "Adam", "spans": [SPAN, {**SPAN, "end": 4}]}, RowError, "overlap"),
        ("tagged", {"text": "Ada", "spans": [{"start": 0}]}, RowError, "no start, end"),
    ],
)
def test_what_is_wrong_with_a_row(
    name: str, row: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        convert(row, name)


def test_they_are_read_by_their_name_alone_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"premise": f"a {n}", "hypothesis": "b", "label": n % 3 or None} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": "premise", "pair": "hypothesis"}
    source = Source(path=str(path), format="labelled", columns=columns)
    report = ReadReport()
    records = [*read(source, report=report)]
    assert records[0] == Labelled("a 1", "1", "b", "rows.jsonl:2")
    assert report.dropped == {"it has no label": 3}
    assert detect({"text": "a", "label": 1}) == "text"
    with pytest.raises(BadRowsError, match="no column 'spans'"):
        [*read(Source(path=str(path), format="tagged", columns={"text": "premise"}))]
