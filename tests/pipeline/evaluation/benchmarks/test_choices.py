"""A multiple-choice file of a user's: how its rows read, how they are asked and counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadRowsError, SourceError
from data.sources.values import RowError
from data.text.prompting import Example, drawn
from pipeline.evaluation.benchmarks import choices
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.choices import Question, read_question
from pipeline.evaluation.benchmarks.loglikelihood import loglikelihoods
from pipeline.evaluation.benchmarks.settings import ChoicesSettings

ROWS: list[dict[str, Any]] = [
    {"question": "Who bakes?", "choices": ["Ada", "the miller"], "answer": 0},
    {"question": "What is 3 + 4?", "choices": ["6", "7", "8"], "answer": "7"},
    {"question": "Where?", "choices": {"text": ["in", "by"], "label": ["x", "y"]}, "answer": "y"},
    {"question": "When?", "choices": ["at six", "at noon"], "answer": "B"},
]  # fmt: skip


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def settings(path: Path, **changes: Any) -> ChoicesSettings:
    return ChoicesSettings.model_validate({"source": {"path": str(path)}, **changes})


def asked(task: ChoicesSettings, subject: Subject) -> list[dict[str, Any]]:
    prepared = choices.prepare(task, lambda line: None)
    return [dict(row) for row in choices.ask(task, prepared, subject)]


def test_an_answer_is_a_text_a_label_a_letter_or_a_number() -> None:
    assert [read_question(row).answer for row in ROWS] == [0, 1, 1, 1]
    numbers = {"question": "?", "choices": ["1", "2"]}
    assert read_question({**numbers, "answer": "1"}).answer == 0  # the text comes first
    assert read_question({**numbers, "answer": 1}).answer == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, r"answer 2 is none of the 2 choices"),
        ({"answer": "C"}, r"answer 'C' is none of the 2 choices; give a text"),
        ({"answer": True}, r"answer True is none"),
        ({"answer": None}, r"no column 'answer'; columns: question, choices, answer"),
        ({"choices": ["one"]}, r"2 or more make a choice"),
        ({"choices": "one, two"}, r"not a list"),
        ({"choices": ["one", 2]}, r"column 'choices' holds a number, not text"),
        ({"question": 3}, r"column 'question' holds a number"),
    ],
)
def test_a_malformed_row_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        read_question({**ROWS[0], **change})


def test_bad_rows_are_told_by_file_and_line(quiz: Path) -> None:
    with quiz.open("a") as file:
        file.write('{"question": "Why?", "choices": ["a", "b"], "answer": 7}\nno JSON\n')
    with pytest.raises(BadRowsError, match=r"2 of 6 rows .*quiz\.jsonl:5: answer 7 .*jsonl:6: "):
        choices.prepare(settings(quiz), lambda line: None)
    lines: list[str] = []
    lenient = settings(quiz, source={"path": str(quiz), "max_bad_share": 0.5})
    questions, _ = choices.prepare(lenient, lines.append)
    assert len(questions) == 4
    assert any("2 malformed rows, the first: " in line for line in lines)


def test_csv_parquet_and_other_names_of_columns_read_alike(quiz: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected, _ = choices.prepare(settings(quiz), lambda line: None)
    table = [
        {"q": q.question, "options": json.dumps(q.choices), "key": str(q.choices[q.answer])}
        for q in expected
    ]
    with (tmp_path / "quiz.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q", "options", "key"])
        writer.writeheader()
        writer.writerows(table)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "quiz.parquet")
    names = {"question": "q", "choices": "options", "answer": "key"}
    for name in ("quiz.csv", "quiz.parquet"):
        source = {"path": str(tmp_path / name), "columns": names}
        assert choices.prepare(settings(quiz, source=source), lambda line: None)[0] == expected
    with pytest.raises(SourceError, match="holds no rows of a task"):
        choices.prepare(settings(quiz, source={"world": "eval_prompts"}), lambda line: None)


def test_a_base_model_gets_lines_and_an_assistant_its_template(
    subject: Callable[..., Subject],
) -> None:
    shown = [Example("Who?", "Ada")]
    for plain, expected in (
        (True, "<|endoftext|>Question: Who?\nAnswer: Ada\n\nQuestion: Where?\nAnswer:"),
        (False, "<|user|>Who?<|end|><|assistant|>Ada<|end|><|user|>Where?<|end|><|assistant|>"),
    ):
        mine = subject(plain=plain)
        context, continuation = mine.pairs("Where?", ["mill"], shown)[0]
        assert mine.tokenizer.decode(context) == expected
        assert mine.tokenizer.decode(continuation) == (" mill" if plain else "mill")
        opening = mine.opening(context)
        assert opening["ids"] == list(context[:8])
        assert "".join(opening["tokens"]) == mine.tokenizer.decode(context[:8])
        assert (opening["bos"], opening["bos_twice"]) == (False, False)
    bos = mine.tokenizer.bos_token_id
    assert mine.opening([bos, bos, 9])["bos_twice"]


def test_rows_hold_what_the_figures_are_counted_from(
    quiz: Path, subject: Callable[..., Subject]
) -> None:
    mine = subject()
    rows = asked(settings(quiz), mine)
    for row, question in zip(rows, [read_question(row) for row in ROWS], strict=True):
        pairs = mine.pairs(question.question, question.choices)
        expected = loglikelihoods(mine.model, pairs)
        assert row["logprobs"] == pytest.approx([one.logprob for one in expected], abs=1e-4)
        assert row["tokens"] == [len(pair.continuation) for pair in pairs]
        assert row["bytes"] == [len(choice.encode()) for choice in question.choices]


def test_accuracy_is_of_the_sum_of_the_bytes_and_of_the_tokens() -> None:
    row = {
        "choices": ["a", "bbbbbb", "cc"], "answer": 1,
        "logprobs": [-2.0, -3.0, -2.5], "bytes": [1, 6, 2], "tokens": [1, 1, 4],
    }  # fmt: skip
    values = {one.metric: one.value for one in choices.measures(row)}
    assert values == {  # -2 wins; -3/6 wins; -2.5/4 wins
        "accuracy": 0.0, "accuracy_per_byte": 1.0, "accuracy_per_token": 0.0,
        "chance": pytest.approx(1 / 3),
    }  # fmt: skip


def test_draws_show_other_examples_and_never_the_question_itself(
    quiz: Path, subject: Callable[..., Subject]
) -> None:
    pool = [Question(str(i), ("a", "b"), 0) for i in range(9)]
    before = [drawn(pool, 3, draw=draw, seed=0) for draw in range(4)]
    other = Question("another", ("a", "b"), 0)
    assert len({tuple(draw(other)) for draw in before}) > 1
    for draw in before:
        for one in pool:
            assert len(draw(one)) == 3 and one not in draw(one)
    with pytest.raises(SourceError, match=r"shots: 9 examples .* there are 8 others to draw from"):
        drawn(pool, 9, draw=0, seed=0)(pool[0])
    rows = asked(settings(quiz, shots=2, draws=3), subject())
    assert [(row["draw"], row["index"]) for row in rows] == [
        (d, i) for d in range(3) for i in range(4)
    ]
    assert len({row["logprobs"][0] for row in rows if row["index"] == 0}) > 1


def test_what_does_not_fit_the_context_is_told(quiz: Path, subject: Callable[..., Subject]) -> None:
    lines: list[str] = []
    asked(settings(quiz, shots=3), subject(lines=lines, context=32))
    assert any("9 of 9 choices are longer than the context" in line for line in lines)
