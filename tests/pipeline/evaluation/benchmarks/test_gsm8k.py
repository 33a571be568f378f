"""GSM8K from a local file: what is asked, and how answers are read and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.sources.values import RowError
from pipeline.evaluation.benchmarks import gsm8k
from pipeline.evaluation.benchmarks.answers import Answer
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.figures import figures
from pipeline.evaluation.benchmarks.settings import Gsm8kSettings

WORKED = "She sold 48/2 = <<48/2=24>>24 clips.\n#### 1,200"


def problems(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"How many are {i}?", "answer": WORKED} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(tmp_path: Path, **changes: Any) -> Gsm8kSettings:
    return Gsm8kSettings.model_validate({"source": {"path": str(problems(tmp_path))}, **changes})


def test_rows_tell_the_calls_of_each_response(
    tmp_path: Path, subject: Callable[..., Subject], calling: Subject
) -> None:
    task = settings(tmp_path, samples=2, max_new_tokens=6, temperature=1.0)
    prepared = gsm8k.prepare(task, lambda line: None)
    rows: list[dict[str, Any]] = [dict(row) for row in gsm8k.ask(task, prepared, calling)]
    call = {"name": "calculator", "arguments": {"expression": "6*7"}, "result": "42"}
    calls = [one for row in rows for one in row["calls"]]
    assert len(calls) == 6 and [{**call, "error": False, "cut": False}] in calls
    assert "calls" not in next(iter(gsm8k.ask(task, prepared, subject())))


def test_three_readings_stand_side_by_side_and_majorities_are_counted(
    tmp_path: Path, subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = settings(tmp_path, samples=4, temperature=0.7)
    said = ["#### 1200", "It is $1,200.00 in all.", "That makes 1.2e3", "no idea"] * 3

    def written(subject: Subject, prompts: Any, **given: Any) -> list[Answer]:
        assert len(prompts) == 12 and prompts[0] == prompts[3] != prompts[4]
        assert given["until"] == ()  # a chat ends by its token
        return [Answer(text, 5, True) for text in said]

    monkeypatch.setattr(gsm8k, "write_answers", written)
    prepared = gsm8k.prepare(task, lambda line: None)
    rows: list[dict[str, Any]] = [
        {"checkpoint": "mine", "task": "gsm8k", "kind": "gsm8k", **row}
        for row in gsm8k.ask(task, prepared, subject())
    ]
    assert rows[0]["readings"]["person"] == {"right": "1200", "given": ["1200"] * 3 + [None]}
    values = {
        (one["metric"], one["reading"]): one["value"] for one in figures(rows, resamples=9, seed=0)
    }
    assert values["accuracy", "person"] == 0.75
    # Strict sees one of four; flexible takes 1,200.00 for another number than 1200.
    assert values["accuracy", "strict"] == values["accuracy", "flexible"] == 0.25
    assert values["maj@4", "person"] == 1.0
    assert values["maj@2", "strict"] == 0.5
    assert values["read", "strict"] == 0.25


def test_examples_lose_the_calculators_marks_and_a_bare_question_says_the_form(
    tmp_path: Path, subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    untils: list[Any] = []
    for plain in (True, False):
        mine = subject(plain=plain)

        def written(subject: Subject, prompts: Any, **given: Any) -> list[Answer]:
            asked.append(subject.tokenizer.decode(prompts[0]))
            untils.append(given["until"])
            return [Answer("#### 5", 3, True) for _ in prompts]

        monkeypatch.setattr(gsm8k, "write_answers", written)
        for task in (settings(tmp_path, shots=1), settings(tmp_path)):
            list(gsm8k.ask(task, gsm8k.prepare(task, print), mine))
    shown, bare = asked[:2]
    assert "Answer: She sold 48/2 = 24 clips.\n#### 1,200\n\nQuestion: How many are 0?" in shown
    assert "write ####" in bare and "write ####" not in shown
    assert asked[2].count("<|assistant|>") == 2
    assert "Question:" in untils[0]


def test_a_tiny_model_answers(tmp_path: Path, subject: Callable[..., Subject]) -> None:
    task = settings(tmp_path, samples=2, temperature=1.0, max_new_tokens=4)
    rows = list(gsm8k.ask(task, gsm8k.prepare(task, print), subject(plain=True)))
    assert [len(row["responses"]) for row in rows] == [2, 2, 2]
    again = list(gsm8k.ask(task, gsm8k.prepare(task, print), subject(plain=True)))
    assert [row["responses"] for row in again] == [row["responses"] for row in rows]


def test_rows_and_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="no column 'answer'"):
        gsm8k.read_problem({"question": "?"})
    with pytest.raises(RowError, match="holds no number"):
        gsm8k.read_problem({"question": "?", "answer": "many"})
    assert gsm8k.read_problem({"question": "?", "answer": 5}).answer == "5"
    with pytest.raises(ValueError, match="samples at temperature 0 are alike"):
        settings(tmp_path, samples=4)


def test_slips_of_marked_calculations_are_counted(
    tmp_path: Path, subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = settings(tmp_path, samples=2, temperature=0.7)
    said = ["<<48/2=24>>24, #### 24", "<<48/2=26>>26 #### 26", "#### 5", "<<10/3=3.33>>3.33"] * 2

    def written(subject: Subject, prompts: Any, **given: Any) -> list[Answer]:
        return [Answer(text, 5, True) for text in said[: len(prompts)]]

    monkeypatch.setattr(gsm8k, "write_answers", written)
    rows: list[dict[str, Any]] = [
        {"checkpoint": "mine", "task": "gsm8k", "kind": "gsm8k", **row}
        for row in gsm8k.ask(task, gsm8k.prepare(task, print), subject())
    ]
    assert [row["slips"] for row in rows] == [[(0, 1), (1, 1)], [(0, 0), (0, 1)], [(0, 1), (1, 1)]]
    values = {one["metric"]: one["value"] for one in figures(rows, resamples=9, seed=0)}
    assert values["marked"] == pytest.approx(5 / 6) and values["slips"] == pytest.approx(2 / 6)
    said[:] = ["#### 5"] * 8
    (first, *_) = gsm8k.ask(task, gsm8k.prepare(task, print), subject())
    assert "slips" not in first
