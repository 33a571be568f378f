"""What of the evaluation's prompts and texts was seen in training, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.records import Document, PromptRow
from data.sources.source import Source
from pipeline.evaluation.judge.overlap import (
    Reading,
    held_out,
    overlap,
    seen_before,
    seen_lines,
)

PROMPTS = [PromptRow(prompt=text) for text in ("What is 1 + 1?", "Who bakes?", "Where is it?")]


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Return a builder of sources: source("name", {"prompt": ...}, ...)."""

    def build(name: str, *rows: dict[str, Any]) -> Source:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(path=str(path))

    return build


def test_prompts_are_counted_by_stage_and_once_in_all(source: Any) -> None:
    taught = source("taught", {"prompt": "what  is 1 + 1?", "completion": "2"})
    chat = [{"role": "user", "content": "Who bakes?"}, {"role": "assistant", "content": "Ada."}]
    sampled = source(
        "sampled", {"messages": chat}, {"messages": [{**chat[0], "content": "Hm"}, chat[1]]}
    )
    ranked = source("ranked", {"prompt": "Who bakes?", "chosen": "Ada.", "rejected": "Hm."})
    found = seen_before(
        PROMPTS,
        [],
        readings={
            "sft": Reading("sft", [taught]),
            "rankings": Reading("rankings", [ranked]),
            "ppo": Reading("ppo", [sampled]),
            "select": Reading("select", [source("other", {"prompt": "Another?"})]),
        },
        elsewhere=["some/model"],
    )
    assert found["prompts"] == 2
    assert {name: stage["prompts"] for name, stage in found["stages"].items()} == {
        "sft": 1, "rankings": 1, "ppo": 1,
    }  # fmt: skip
    assert seen_lines({"seen": found, "prompts": {"n": 3}, "texts": 0}) == [
        "2 of 3 prompts (67 %) not held out: 1 learnt by sft, 1 ranked in rankings, "
        "1 sampled on in ppo.",
        "What some/model learnt from is not known here.",
    ]
    assert held_out({"seen": found}) == ""


def test_what_a_stage_held_out_was_not_seen_by_it(source: Any) -> None:
    rows = source("rows", *({"prompt": row.prompt, "completion": "x"} for row in PROMPTS))
    apart = source("apart", {"prompt": "Where is it?", "completion": "x"})
    named = seen_before(PROMPTS, [], readings={"sft": Reading("sft", [rows], judged_by=[apart])})
    assert named["prompts"] == 2
    shared = Reading("sft", [rows], held_out=lambda record: "bakes" not in str(record))
    assert seen_before(PROMPTS, [], readings={"sft": shared})["prompts"] == 1


def test_texts_are_those_of_documents_word_for_word(source: Any) -> None:
    corpus = source("corpus", {"text": "A long  text."}, {"text": "Another."})
    found = seen_before(
        PROMPTS, ["a long text.", "A long text."], readings={"base": Reading("pretrain", [corpus])}
    )
    assert (found["texts"], found["prompts"]) == (1, 0)
    assert seen_lines({"seen": found, "prompts": {"n": 3}, "texts": 2}) == [
        "1 of 2 texts (50 %) not held out: 1 learnt by base."
    ]
    assert (held_out({"seen": found}), held_out({"seen": found}, "texts")) == ("held-out ", "")


def test_the_beginnings_of_documents_are_prompts_where_they_are_asked(source: Any) -> None:
    corpus = source("corpus", {"text": "Who bakes? Ada."}, {"text": "Where"})

    def first_words(document: Document) -> PromptRow | None:
        words = document.text.split()
        return PromptRow(prompt=" ".join(words[:2])) if len(words) > 1 else None

    found = seen_before(
        PROMPTS,
        [],
        readings={"base": Reading("pretrain", [corpus])},
        document_prompt=first_words,
    )
    assert found["prompts"] == 1


def test_a_source_that_is_gone_is_told(tmp_path: Path) -> None:
    gone = Reading("sft", [Source(path=str(tmp_path / "gone.jsonl"))])
    found = seen_before(PROMPTS, [], readings={"sft": gone})
    assert (found["unread"], found["compared"]) == (["sft"], [])
    assert held_out({"seen": found}) == ""


def test_each_checkpoint_has_the_stages_that_made_it(source: Any, tmp_path: Path) -> None:
    taught = source("taught", {"prompt": "WHO bakes?", "completion": "Ada."})
    gone = Source(path=str(tmp_path / "gone.jsonl"))
    seen = seen_before(
        PROMPTS,
        [],
        readings={"sft": Reading("sft", [taught]), "ppo": Reading("ppo", [gone])},
    )
    assert overlap(seen, {"base": [], "sft": ["sft"], "ppo": ["sft", "ppo"]}, n=3) == [
        {"checkpoint": "sft", "stage": "sft", "shared_prompts": 1, "n": 3},
        {"checkpoint": "ppo", "stage": "sft", "shared_prompts": 1, "n": 3},
        {"checkpoint": "ppo", "stage": "ppo", "shared_prompts": None, "n": 3},
    ]


def test_nothing_is_held_out_from_a_checkpoint_of_unknown_training(source: Any) -> None:
    reading = Reading("sft", [source("taught", {"prompt": "Another?", "completion": "Ada."})])
    ours = seen_before(PROMPTS, [], readings={"sft": reading})
    theirs = seen_before(PROMPTS, [], readings={"sft": reading}, elsewhere=["some/model"])
    assert (held_out({"seen": ours}), held_out({"seen": theirs})) == ("held-out ", "")
