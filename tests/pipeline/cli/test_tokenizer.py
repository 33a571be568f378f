"""`rlhf tokenizer show` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.text.tokenizer import train_tokenizer

TALE = ["A goblin in a bad mode. What mode does the goblin like? A quiet mode, said the goblin."]


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "tokenizer"
    train_tokenizer(TALE, vocabulary_size=400).save_pretrained(folder / "tokenizer")
    return folder


def test_pieces_bytes_and_merges_are_shown_of_a_stage(rlhf: Any, stage: Path) -> None:
    result = rlhf("tokenizer", "show", stage, "goblinmode")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "2 tokens, 10 bytes, 5.00 bytes a token"
    assert [line for line in lines if "id" in line.split()] == [
        lines[1],
        next(line for line in lines if line.startswith("mode")),
    ]
    assert lines[1].startswith("goblin  id ") and lines[1].endswith("bytes 67 6f 62 6c 69 6e")
    assert lines[2].startswith("  ") and " = goblin  (learned as " in lines[2]
    assert lines[3].startswith("    ")


def test_as_json_each_piece_has_its_tree(rlhf: Any, stage: Path) -> None:
    result = rlhf("tokenizer", "show", stage / "tokenizer", "a mode", "--json")
    found = json.loads(result.out)
    assert (found["text"], found["bytes"]) == ("a mode", 6)
    assert found["bytes_per_token"] == 6 / len(found["pieces"])
    last = found["pieces"][-1]
    assert last["bytes"] == "20 6d 6f 64 65" and last["name"] == "Ġmode"
    assert {last["made"]["left"] if isinstance(last["made"]["left"], str) else ""} == {"Ġ"}


def test_a_place_without_a_tokenizer_is_told(rlhf: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = rlhf("tokenizer", "show", tmp_path / "empty", "x")
    assert result.code == 2 and "empty" in result.err
    assert "Traceback" not in result.err
