"""Tasks of lm-eval on a live model: equal to its own `HFLM`, from local files, in rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from data.errors import SourceError, UsageError
from pipeline.evaluation.benchmarks import lm_eval_task
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.figures import figures
from pipeline.evaluation.benchmarks.harness import LiveModel
from pipeline.evaluation.benchmarks.settings import LmEvalSettings

QUIZ = """
task: quiz
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/quiz.jsonl, train: FOLDER/quiz.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/quiz.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
"""
TEXTS = """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/quiz.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
QUESTIONS = [
    ("Who bakes bread?", ["Ada Finch", "the miller", "the bridge"], 0),
    ("Where is the mill?", ["by the river", "in the morning"], 0),
    ("What is 3 + 4?", ["6", "7"], 1),
    ("Who is the teacher?", ["I don't know", "Ada"], 0),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("quiz", QUIZ), ("written", WRITTEN), ("texts", TEXTS)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("FOLDER", str(tmp_path)))
    return tmp_path


def asked(task: LmEvalSettings, subject: Subject) -> list[dict[str, Any]]:
    prepared = lm_eval_task.prepare(task, print)
    return [
        {"checkpoint": "mine", "task": task.called, "kind": "lm_eval", **row}
        for row in lm_eval_task.ask(task, prepared, subject)
    ]


def settings(folder: Path, task: str, **changes: Any) -> LmEvalSettings:
    return LmEvalSettings(task=task, folder=str(folder), **changes)


def test_the_three_kinds_of_requests_are_answered_as_hflm_does(
    subject: Callable[..., Subject],
) -> None:
    mine = subject(context=64, layers=2)
    ours = LiveModel(mine)
    theirs = HFLM(
        pretrained=mine.model, tokenizer=mine.tokenizer, batch_size=2, device="cpu", max_length=64
    )

    def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [Instance(kind, {}, given, place) for place, given in enumerate(arguments)]

    pairs = requests(
        "loglikelihood", ("Who bakes?", " Ada Finch"), ("Who bakes?", " the miller"),
        ("", "Ada bakes"), ("The mill ", "is old"), ("a" * 90, " long"), ("Who:", "(A)"),
    )  # fmt: skip
    for mine_one, their_one in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True), strict=True
    ):
        assert mine_one[0] == pytest.approx(their_one[0], abs=1e-3)
        assert mine_one[1] == their_one[1]
    texts = requests("loglikelihood_rolling", ("The miller lives by the river. " * 9,), ("Ada",))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-3
    )
    given = {"until": ["e", "\n\n"], "max_gen_toks": 10}
    prompts = requests(
        "generate_until", ("Who bakes?", given), ("Where", given),
        ("What is it " * 20, {"until": [], "do_sample": False, "max_gen_toks": 6}),
    )  # fmt: skip
    assert ours.generate_until(prompts) == theirs.generate_until(prompts, disable_tqdm=True)
    with pytest.raises(UsageError, match="generation_kwargs num_beams, which the decoder"):
        ours.generate_until(requests("generate_until", ("Who?", {"num_beams": 4})))
    with pytest.raises(
        UsageError, match="64 new tokens are asked for, and the context of mine holds 64"
    ):
        ours.generate_until(requests("generate_until", ("Who?", {"max_gen_toks": 64})))


def test_rows_tell_the_calls_of_responses(folder: Path, calling: Subject) -> None:
    rows = asked(settings(folder, "written", limit=2), calling)
    assert all(len(row["calls"]) == 1 for row in rows)
    assert {call["result"] for row in rows for calls in row["calls"] for call in calls} == {"42"}


def test_every_prompt_has_its_own_bos(subject: Callable[..., Subject]) -> None:
    from tokenizers.processors import TemplateProcessing

    mine = subject()
    bos, number = mine.tokenizer.bos_token, mine.tokenizer.bos_token_id
    mine.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, number)]
    )
    model = LiveModel(mine)
    plain, typed = model.tok_encode("Who?"), model.tok_encode(f"{bos}Who?")
    assert plain == typed and plain.count(number) == 1
    assert model.tok_encode("Who?", add_special_tokens=False) == plain[1:]


def test_a_continuation_that_joins_the_contexts_last_token_is_read_by_itself(
    subject: Callable[..., Subject],
) -> None:
    model = LiveModel(subject())
    whole = [(("Who", "."), [9, 10], model.tok_encode(".", add_special_tokens=False))]
    joined: list[Any] = [(("Who", "."), [9, 10], [])]
    assert model._loglikelihood_tokens(joined) == model._loglikelihood_tokens(whole)


def test_a_task_of_local_files_is_counted_from_its_rows(
    folder: Path, subject: Callable[..., Subject]
) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    mine = subject(layers=2)
    rows = [row for name in ("quiz", "texts") for row in asked(settings(folder, name), mine)]
    found = {(one["task"], one["metric"]): one for one in figures(rows, resamples=50, seed=0)}
    theirs = HFLM(pretrained=mine.model, tokenizer=mine.tokenizer, batch_size=2, device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = evaluate(theirs, manager.load(["quiz", "texts"]), bootstrap_iters=0)["results"]
    for (task, metric), figure in found.items():
        assert figure["value"] == pytest.approx(results[task][f"{metric},none"], rel=1e-4)
        assert figure["n"] == 4 and figure["ci95"] is not None
    assert {key[1] for key in found} == {"acc", "acc_norm", "word_perplexity", "bits_per_byte"}
    assert found["quiz", "acc"]["first_tokens"]["bos"] is False


def test_filters_are_readings_and_draws_are_asked_one_by_one(
    folder: Path, subject: Callable[..., Subject]
) -> None:
    mine = subject()
    rows = asked(settings(folder, "written", limit=3), mine)
    assert {(row["index"], row["filter"]) for row in rows} == {
        (i, name) for i in range(3) for name in ("whole", "word")
    }
    readings = {one["reading"] for one in figures(rows, resamples=9, seed=0)}
    assert readings == {"whole", "word"}
    task = settings(folder, "quiz", shots=2, draws=3)
    rows = asked(task, mine)
    prepared = lm_eval_task.prepare(task, print)  # once, for two checkpoints
    for _ in range(2):
        again = [row["question"] for row in lm_eval_task.ask(task, prepared, mine)]
        assert again == [row["question"] for row in rows]
    assert len({row["question"] for row in rows if row["index"] == 0}) > 1
    (accuracy, _) = figures(rows, resamples=9, seed=0)
    assert len(accuracy["draws"]) == 3 and accuracy["shots"] == 2


def test_the_chat_template_asks_examples_as_turns(
    folder: Path, subject: Callable[..., Subject]
) -> None:
    rows = asked(settings(folder, "quiz", shots=1, limit=2, chat=True), subject())
    assert rows[0]["question"].count("<|user|>") == 2
    assert rows[0]["question"].endswith("<|assistant|>")


def test_what_is_not_there_is_told(
    folder: Path, subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"has no task 'quizz'\. Did you mean 'quiz'\?"):
        lm_eval_task.prepare(settings(folder, "quizz"), print, 20)
    with pytest.raises(UsageError, match="there is no folder /nowhere"):
        lm_eval_task.prepare(settings(Path("/nowhere"), "quiz"), print)
    (folder / "quiz.jsonl").unlink()
    with pytest.raises(SourceError, match="lm-eval can't load task 'quiz': "):
        lm_eval_task.prepare(settings(folder, "quiz"), print)
    monkeypatch.setattr("data.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs lm_eval, .*pip install 'rlhf-pipeline\[eval\]'"):
        lm_eval_task.prepare(settings(folder, "quiz"), print)
