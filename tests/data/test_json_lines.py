"""Files of JSON lines: what a killed process leaves, and what a line may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import ArtifactError, StorageError
from data.json_lines import append_json_lines, read_json_lines


def test_lines_come_back_as_they_were_whatever_their_text_holds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "one\u2028two\x85three\nfour"}, {"text": "h\ud800alf"}, {"text": "grün"}]
    append_json_lines(path, rows[:1])
    append_json_lines(path, rows[1:], sync=True)
    append_json_lines(path, [])
    assert [*read_json_lines(path)] == rows
    assert "grün" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("half", ['{"text": "gr', '{"text": "grü', '{"text": "grün"'])
def test_a_line_that_was_cut_off_is_passed_over_and_removed(tmp_path: Path, half: str) -> None:
    path = tmp_path / "rows.jsonl"
    append_json_lines(path, [{"a": 1}])
    with path.open("ab") as file:
        file.write(half.encode()[: 14 if half.endswith("ü") else None])
    assert [*read_json_lines(path)] == [{"a": 1}]
    append_json_lines(path, [{"a": 2}])
    assert [*read_json_lines(path)] == [{"a": 1}, {"a": 2}]
    path.write_bytes(b'{"a"')
    append_json_lines(path, [{"a": 3}])
    assert [*read_json_lines(path)] == [{"a": 3}]


def test_a_broken_line_among_others_is_named_or_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a"{"a": 2}\n{"a": 3}\n')
    with pytest.raises(ArtifactError, match=r"rows\.jsonl:2 is no JSON"):
        [*read_json_lines(path)]
    assert [*read_json_lines(path, skip_broken=True)] == [{"a": 1}, {"a": 3}]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.jsonl can't be read"):
        [*read_json_lines(tmp_path / "none.jsonl")]
    with pytest.raises(StorageError, match="choose another folder"):
        append_json_lines(tmp_path / "none" / "rows.jsonl", [{"a": 1}])
