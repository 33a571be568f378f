"""What an evaluation reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import SourceError
from pipeline.contract.settings import SourceSettings
from pipeline.evaluation.judge.inputs import document_opening, read_prompts, read_texts


def source(path: Path, **settings: Any) -> SourceSettings:
    return SourceSettings(path=str(path), **settings)


def test_prompts_of_conversations_and_rankings_are_their_questions(tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    ranked = {"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 2]}
    (tmp_path / "a.jsonl").write_text(json.dumps(talk) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(ranked) + "\n")
    sources = [source(tmp_path / "a.jsonl"), source(tmp_path / "b.jsonl")]
    rows = read_prompts(sources, limit=None, seed=0, say=print)
    assert [row.prompt for row in rows] == [[{"role": "user", "content": "Hi"}], "Why?"]
    assert [row.meta.get("answer") for row in rows] == ["Yo", None]


def test_the_answer_of_a_completion_is_handed_to_rewards(tmp_path: Path) -> None:
    from reward.computed.rules import rule
    from reward.scorer import Facts, scores_of

    (tmp_path / "a.jsonl").write_text(
        json.dumps({"prompt": "order: b, a", "completion": "a, b"}) + "\n"
    )
    [row] = read_prompts([source(tmp_path / "a.jsonl")], limit=None, seed=0, say=print)
    facts = Facts(rows=[row.meta] * 2)
    assert scores_of(rule("answer"), [row.prompt] * 2, ["A, b.", "b, a"], facts) == [1.0, 0.0]


def test_a_limit_draws_prompts_by_the_seed_and_keeps_their_order() -> None:
    world = SourceSettings(world="eval_prompts")
    every = read_prompts([world], limit=None, seed=0, say=print)
    some = read_prompts([world], limit=20, seed=0, say=print)
    places = [every.index(row) for row in some]
    assert len(places) == 20
    assert places == sorted(places)
    assert places != list(range(20))
    assert some == read_prompts([world], limit=20, seed=0, say=print)
    assert some != read_prompts([world], limit=20, seed=1, say=print)


def test_documents_ask_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time.\n")
    with pytest.raises(SourceError, match="documents, which ask nothing"):
        read_prompts([source(tmp_path / "a.txt")], limit=None, seed=0, say=print)


def test_documents_are_gone_on_from_after_so_many_tokens(
    tmp_path: Path, tiny_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = tiny_tokenizer()
    text = "The baker of Millbrook is Ada Finch."
    rows = [json.dumps({"text": t}) for t in (text, "The")]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    said: list[str] = []
    opening = document_opening(tokenizer, 4)
    prompts = read_prompts(
        [source(tmp_path / "a.jsonl")], limit=None, seed=0, say=said.append, opening=opening
    )
    assert [len(tokenizer(str(row.prompt))["input_ids"]) for row in prompts] == [4]
    assert text.startswith(str(prompts[0].prompt))
    assert said[-1:] == ["dropped 1 document: shorter than prefix_tokens"]


def test_texts_stop_at_the_limit_and_malformed_rows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"text {i}"}) for i in range(20)]
    path.write_text("\n".join([*lines[:3], "broken", *lines[3:]]) + "\n")
    said: list[str] = []
    texts = read_texts([source(path, max_bad_share=0.5)], limit=100, say=said.append)
    assert len(texts) == 20
    assert any("a.jsonl:4" in line for line in said)
    assert read_texts([source(path, max_bad_share=0.5)], limit=2, say=print) == ["text 0", "text 1"]
