"""The table of answers at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import ArtifactError
from pipeline.evaluation.report.table import answers_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write samples of two checkpoints, one of them hostile."""
    rows = [
        {
            "index": i,
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "checkpoint": name,
            "response": said,
            "gold": gold,
            "proxy": -1.0,
        }
        for name, said, gold in (
            ("sft", "[bold red]markup[/] \x1b[31mescape\nand lines", 0.25),
            ("ppo", "word " * 200, None),
        )
        for i in range(9)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_plain_lines_show_each_answer_under_its_prompt(folder: Path) -> None:
    text = answers_table(folder, count=3, terminal=False)
    assert text.count("Question") == 3
    assert text.count("sft [gold 0.25]: [bold red]markup[/]") == 3
    assert text.count("ppo [proxy -1.00]: word word") == 3
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert "..." in text


def test_terminal_gets_a_table_of_its_width(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    text = answers_table(folder, count=2, terminal=True)
    assert "\x1b[31m" not in text
    assert "[bold" in text
    assert "sft" in text
    assert "gold 0.25" in text


def test_the_seed_draws_the_prompts(folder: Path) -> None:
    one, same, other = (answers_table(folder, seed=s, terminal=False) for s in (1, 1, 2))
    assert one == same != other


def test_missing_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"samples\.jsonl"):
        answers_table(tmp_path)
