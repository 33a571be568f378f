"""TruthfulQA's MC1 and MC2 from files in its three layouts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadRowsError
from pipeline.evaluation.benchmarks import truthfulqa
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.settings import TruthfulQaSettings
from pipeline.evaluation.benchmarks.truthfulqa import Question

TABLE = {
    "Question": "Where is it?", "Best Answer": "In the mill", "Correct Answers":
    "By the river; In the mill.", "Incorrect Answers": "Nowhere; On the moon",
}  # fmt: skip
TARGETS = {
    "question": "Where is it?",
    "mc1_targets": {"choices": ["In the mill.", "Nowhere."], "labels": [1, 0]},
    "mc2_targets": {
        "choices": ["In the mill.", "By the river.", "Nowhere.", "On the moon."],
        "labels": [1, 1, 0, 0],
    },
}
JUDGED = [
    {"question": "Where is it?", "answer": "In the mill.", "truthful": True},
    {"question": "When?", "answer": "Now.", "truthful": True},
    {"question": "Where is it?", "answer": "Nowhere.", "truthful": False},
]


def prepared(tmp_path: Path, rows: list[dict[str, Any]], say: Any = print) -> list[Question]:
    path = tmp_path / "truthfulqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TruthfulQaSettings.model_validate({"source": {"path": str(path)}})
    return truthfulqa.prepare(task, say)


def test_the_papers_table_and_the_hubs_columns_read_alike(tmp_path: Path) -> None:
    answers = ("In the mill.", "By the river.", "Nowhere.", "On the moon.")
    expected = Question("Where is it?", answers, (True, True, False, False), 0)
    assert prepared(tmp_path, [TABLE, TARGETS]) == [expected, expected]


def test_judged_answers_come_together_and_have_no_best_one(tmp_path: Path) -> None:
    lines: list[str] = []
    (question,) = prepared(tmp_path, JUDGED, lines.append)
    assert question == Question("Where is it?", ("In the mill.", "Nowhere."), (True, False), None)
    assert any("left out 1 question whose answers are all true or all false" in x for x in lines)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?", "answer": "a"},
        {"question": "?", "answer": "a", "truthful": "yes"},
        {**TABLE, "Incorrect Answers": " ; "},
        {**TARGETS, "mc1_targets": {"choices": ["a"], "labels": [1]}},
        {**TARGETS, "mc2_targets": {"choices": ["a"], "labels": [1, 0]}},
    ],
)
def test_a_malformed_row_is_told(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(BadRowsError, match=r"truthfulqa\.jsonl:1: "):
        prepared(tmp_path, [row])


def test_mc1_and_mc2_by_hand() -> None:
    chances = [0.2, 0.5, 0.3, 0.1]
    row: dict[str, Any] = {
        "logprobs": [math.log(p) for p in chances],
        "true": [True, True, False, False],
    }
    values = {one.metric: one.value for one in truthfulqa.measures({**row, "best": 0})}
    assert values == {"mc1": 0.0, "mc2": pytest.approx(0.7 / 1.1), "likeliest_true": 1.0}
    assert "mc1" not in {one.metric for one in truthfulqa.measures({**row, "best": None})}
    # Of long answers every probability is too small for a float.
    long = {**row, "logprobs": [total - 5000 for total in row["logprobs"]], "best": 1}
    values = {one.metric: one.value for one in truthfulqa.measures(long)}
    assert values == {"mc1": 1.0, "mc2": pytest.approx(0.7 / 1.1), "likeliest_true": 1.0}


def test_mc2_is_lm_evals(tmp_path: Path, subject: Callable[..., Subject]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    mine = subject(plain=True)
    task = TruthfulQaSettings.model_validate({"source": {"path": "unused"}})
    (row,) = truthfulqa.ask(task, prepared(tmp_path, [TARGETS]), mine)
    theirs = HFLM(pretrained=mine.model, tokenizer=mine.tokenizer, batch_size=2, device="cpu")
    context = "<|endoftext|>Question: Where is it?\nAnswer:"
    requests = [
        Instance("loglikelihood", {}, (context, f" {text}"), index)
        for index, text in enumerate(row["choices"])
    ]
    totals = [total for total, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
    assert row["logprobs"] == pytest.approx(totals, abs=1e-4)
    masses = [math.exp(total) for total in totals]
    values = {one.metric: one.value for one in truthfulqa.measures(row)}
    assert values["mc2"] == pytest.approx(sum(masses[:2]) / sum(masses), abs=1e-5)
