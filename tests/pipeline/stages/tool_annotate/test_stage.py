"""Calls put into text: where they are tried, which are kept, and that a cut off run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, SourceError
from data.records import Document
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import SourceSettings
from pipeline.evaluation.benchmarks.loglikelihood import Likelihood, Pair
from pipeline.generation.generate import Sample
from pipeline.generation.tools.calls import Asked, Call
from pipeline.stages.tool_annotate import annotate, stage
from pipeline.stages.tool_annotate import run as running
from pipeline.stages.tool_annotate.settings import ToolAnnotateSettings

TEXTS = [f"What is {a} * 3? It is {3 * a}." for a in range(2, 9)]
WRITES = ["2*3=", "1/0=", "no call", "2+2="]
"""What the caller writes behind the opening, in turn."""


@pytest.fixture
def policy(tiny_tokenizer: Any, save_policy: Any) -> Path:
    return save_policy(tiny_tokenizer(), context=256)


@pytest.fixture
def settings(policy: Path, tmp_path: Path) -> Callable[..., ToolAnnotateSettings]:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def build(**changes: Any) -> ToolAnnotateSettings:
        return ToolAnnotateSettings.model_validate(
            {"model": str(policy), "train": [{"path": str(path)}], "opening_probability": 0.0,
             "places": 2, "calls": 4, **changes}
        )  # fmt: skip

    return build


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    """Let the caller write `WRITES`, and the judge like text behind the result 6, and no other."""
    tokenizer = tiny_tokenizer()

    def generate(model: Any, prompts: list[list[int]], **given: Any) -> list[Sample]:
        assert all(tokenizer.decode(ids).endswith("<<") for ids in prompts)
        rows = [
            tokenizer(WRITES[place % len(WRITES)], add_special_tokens=False)["input_ids"]
            for place in range(len(prompts))
        ]
        assert all(given["stop"](ids) == (ids != rows[2]) for ids in rows)
        return [Sample(ids, False, [0.0] * len(ids)) for ids in rows]

    def loglikelihoods(model: Any, pairs: Sequence[Pair], **_: Any) -> list[Likelihood]:
        likes = ["=6>>" in tokenizer.decode(list(pair.context)) for pair in pairs]
        return [
            Likelihood(-len(pair.continuation) * (0.5 if like else 2.0), False, 1)
            for pair, like in zip(pairs, likes, strict=True)
        ]

    monkeypatch.setattr(annotate, "generate", generate)
    monkeypatch.setattr(annotate, "loglikelihoods", loglikelihoods)
    monkeypatch.setattr(running, "CHUNK", 2)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_weights_are_the_papers() -> None:
    # -(1 * -1 + .8 * -2 + .6 * -3 + .4 * -4 + .2 * -5) / 3
    sums = [-1.0, -3.0, -6.0, -10.0, -15.0]
    assert annotate.weighted_loss(sums) == pytest.approx(7 / 3)
    assert annotate.weighted_loss(sums[:2]) == pytest.approx(2.6 / 3)


def test_a_call_whose_result_helps_is_kept_and_the_others_are_counted(
    settings: Callable[..., ToolAnnotateSettings], make_context: Callable[..., Any], caller: None
) -> None:
    context = make_context(asked := settings(limit=3, gain=0.4), {"model": asked.model})
    metrics = stage.run(context)
    rows, calls = lines(context.folder, "rows.jsonl"), lines(context.folder, "calls.jsonl")
    for row, text in zip(rows, TEXTS, strict=False):
        assert row["text"].count("<<2*3=6>>") == 2
        assert row["text"].replace("<<2*3=6>>", "") == text
    # Of four samples at each of six places one is no call, one fails, and one has no use.
    assert metrics["n_texts"] == metrics["n_annotated"] == 3
    assert (metrics["n_calls"], metrics["n_no_calls"]) == (6, 6)
    told = {name: metrics[f"{name}/calculator"] for name in ("tried", "failed", "kept", "gain")}
    # Each of five tokens costs 1.5 nats less behind the result; at a text's end there are fewer.
    assert 0.5 <= told.pop("gain") < 1.5 and told == {"tried": 18, "failed": 6, "kept": 6}
    assert {(one["call"], one["kept"]) for one in calls} == {
        ("<<2*3=", True), ("<<1/0=", False), ("<<2+2=", False)
    }  # fmt: skip
    failed = next(one for one in calls if one["failed"])
    assert "division by zero" in failed["result"] and failed["gain"] is None
    assert all(one["gain"] == 0 for one in calls if one["call"] == "<<2+2=")


def test_answers_are_annotated_and_questions_are_not(
    settings: Callable[..., ToolAnnotateSettings], make_context: Callable[..., Any], caller: None
) -> None:
    chats = settings(train=[{"world": "sums", "limit": 2}], result="inside", gain=0.5)
    context = make_context(chats, {"model": chats.model})
    assert stage.run(context)["n_annotated"] == 2
    for row in lines(context.folder, "rows.jsonl"):
        question, answer = row["messages"]
        assert "<<" not in question["content"] and "<<2*3=6>>" in answer["content"]


def test_a_call_before_a_word_stands_behind_its_space(
    settings: Callable[..., ToolAnnotateSettings], make_context: Callable[..., Any]
) -> None:
    asked = settings(result="inside")
    made = running.make_annotator(make_context(asked, {"model": asked.model}))
    passage = made.passage(Document("Who is it? It is  a baker."))
    words = [i for i in range(1, len(passage.ids)) if passage.space(i)]
    assert words and all(passage.text[passage.place(i)] != " " for i in words)
    one = annotate.Candidate(annotate.Place(0, words[0]), "<<2*3=", Call("calculator", {}, "6"))
    for call, written in (("", ""), (one.whole, " <<2*3=6>>")):
        pair = made._pairs(passage, one, call)[-1]
        before = made.tokenizer.decode(pair.context, skip_special_tokens=True)
        follow = made.tokenizer.decode(pair.continuation)
        assert before.endswith(passage.text[: passage.starts[words[0]]] + written)
        assert passage.text[passage.place(words[0]) :].startswith(follow.removeprefix(" "))
        assert follow.startswith(" ") == (not call)


def test_a_prompt_stands_before_each_text_of_the_caller_alone(
    settings: Callable[..., ToolAnnotateSettings], make_context: Callable[..., Any], caller: None
) -> None:
    asked = settings(limit=1, prompt="Put calls into this.\nInput: {text}\nOutput: ")
    context = make_context(asked, {"model": asked.model})
    made = running.make_annotator(context)
    passage = made.passage(running._records(context)[0])
    shown = made.tokenizer.decode(made.read_before(passage))
    assert shown.endswith(f"Input: {TEXTS[0]}\nOutput: ") and passage.ids
    assert "Input" not in made.tokenizer.decode(passage.before)
    assert stage.run(context)["n_annotated"] == 1


def test_interrupted_equals_uninterrupted(
    settings: Callable[..., ToolAnnotateSettings],
    make_context: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # The checkpoint itself writes and judges; whatever a call does is enough.
    monkeypatch.setattr(running, "CHUNK", 2)
    monkeypatch.setattr(annotate, "asked_inline", lambda text, names: Asked(*ASKED))
    asked = settings(gain=-100.0, max_call_tokens=4)
    whole = make_context(asked, {"model": asked.model}, tmp_path / "whole", seed=3)
    metrics = stage.run(whole)
    assert metrics["kept/calculator"] > 0
    cut = {"model": asked.model}, tmp_path / "cut"
    with pytest.raises(Interrupted, match="stopped after 4 texts"):
        stage.run(make_context(asked, *cut, seed=3, stop_after=1))
    assert stage.run(make_context(asked, *cut, seed=3)) == metrics
    for name in ("rows.jsonl", "calls.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole.folder / name).read_bytes()


ASKED = ("calculator", ["2*3"])


def test_what_cannot_be_annotated_is_refused(
    settings: Callable[..., ToolAnnotateSettings], make_context: Callable[..., Any]
) -> None:
    with pytest.raises(ValidationError, match=r"shows no text to annotate; write \{text\}"):
        settings(prompt="Put calls into this.")
    with pytest.raises(ValidationError, match="leave out `form`"):
        settings(tools={"use": ["calculator"], "form": "template"})
    with pytest.raises(ValidationError, match="tool 'calculator' is named twice"):
        settings(tools=["calculator", "calculator"])
    hand = HandOver("annotate", {}, lambda _: None)
    with pytest.raises(HandOverError, match="max_call_tokens"):
        stage.check(settings(max_call_tokens=300), hand)
    stage.check(mixed := settings(train=[{"world": "sums"}, {"world": "corpus"}]), hand)
    with pytest.raises(SourceError, match="train holds Conversation and Document rows"):
        stage.run(make_context(mixed, {"model": mixed.model}))


def test_rows_of_a_stage_are_a_source_of_those_that_learn(
    settings: Callable[..., ToolAnnotateSettings],
    make_context: Callable[..., Any],
    make_artifact: Callable[..., Any],
    caller: None,
) -> None:
    context = make_context(asked := settings(), {"model": asked.model}, name="annotated")
    stage.run(context)
    artifact = make_artifact(context.folder, stage="annotated", kind="tool_annotate")
    source = SourceSettings.model_validate({"stage": "annotated", "limit": 2})
    hand = HandOver("sft", {"annotated": asked}, {"annotated": artifact}.get)
    placed = hand.placed(source)
    assert placed is not None and placed.path == str(context.folder / "rows.jsonl")
    assert HandOver("sft", {"annotated": asked}, lambda _: None).placed(source) is None
    with pytest.raises(SourceError, match="rows of stage annotated are not read here"):
        source.source()
    assert "stage" not in SourceSettings(path="a").model_dump()
