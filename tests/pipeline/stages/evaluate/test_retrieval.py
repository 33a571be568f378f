"""Checkpoints judged with passages beside themselves without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import HandOverError, SourceError, UsageError
from data.json_lines import read_json_lines
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.report.report import write_evaluation_report
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.evaluate.stage import check, run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def policy(
    tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path], tmp_path: Path
) -> str:
    return str(save_policy(tiny_tokenizer(), tmp_path / "sft", context=512))


def settings_for(policy: str, corpus: Any = "register", /, **changes: Any) -> EvaluateSettings:
    source = {"path": str(corpus)} if isinstance(corpus, Path) else {"world": corpus}
    retrieve = {"corpus": [source], "passages": 2, "passage_tokens": 300, "checkpoints": ["sft"]}
    given: dict[str, Any] = {
        "checkpoints": {"base": policy, "sft": policy},
        "prompts": [{"world": "eval_prompts"}],
        "limit": 6,
        "gold": True,
        "plain": ["base"],
        "max_new_tokens": 6,
        "resamples": 50,
        "retrieve": retrieve | changes.pop("retrieve", {}),
    }
    return EvaluateSettings.model_validate(given | changes)


def inputs(settings: EvaluateSettings) -> dict[str, str]:
    return {f"checkpoints.{name}": place for name, place in settings.checkpoints.items()}


def test_with_and_without_stand_side_by_side(
    make_context: Callable[..., Any], policy: str, tmp_path: Path
) -> None:
    settings = settings_for(policy)
    assert list(settings.judged) == ["base", "sft", "sft+retrieval"]
    context = make_context(settings, inputs(settings))
    metrics = run(context)
    rows = [*read_json_lines(context.folder / "samples.jsonl")]
    assert {row["checkpoint"]: "sources" in row for row in rows} == {
        "base": False,
        "sft": False,
        "sft+retrieval": True,
    }
    reading = [row for row in rows if row["checkpoint"] == "sft+retrieval"]
    assert all(row["prompt"] == rows[row["index"]]["prompt"] for row in reading)
    assert any(len(row["sources"]) == 2 for row in reading)
    assert {one["where"].partition("/")[0] for row in reading for one in row["sources"]} == {
        "world:register"
    }
    results = json.loads((context.folder / "evaluation.json").read_text())
    assert results["checkpoints"]["sft+retrieval"]["n"] == 6
    assert metrics["sft+retrieval/gold_reward"] is not None
    given = {row["checkpoint"]: row["first_prompt"] for row in results["provenance"]}
    asked = given["sft"].removeprefix("<|user|>")
    assert given["sft+retrieval"].endswith(f"\n\n{asked}") and asked in given["sft"]
    paired = [d for d in results["differences"] if (d["a"], d["b"]) == ("sft+retrieval", "sft")]
    assert {d["measure"] for d in paired} >= {"gold_reward", "correct", "invented"}
    counted = figures(rows, resamples=50, seed=results["bootstrap"]["seed"])
    assert results["differences"] == counted["differences"]
    page = write_evaluation_report(context.folder).read_text()
    assert "world:register/" in page and "sft+retrieval" in page


def test_answers_follow_from_the_corpus(
    make_context: Callable[..., Any], policy: str, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"

    def read() -> set[str]:
        settings = settings_for(policy, corpus)
        context = make_context(settings, inputs(settings), tmp_path / "run")
        run(context)
        rows = read_json_lines(context.folder / "samples.jsonl")
        return {source["text"] for row in rows for source in row.get("sources", ())}

    for text in ("What does who keep, eat and do?", "What? Where is the house, what does who do?"):
        corpus.write_text(text + "\n")
        assert read() == {text}


def test_recipes_of_before_keep_their_keys(policy: str) -> None:
    settings = EvaluateSettings.model_validate(
        {"checkpoints": {"sft": policy}, "prompts": [{"world": "eval_prompts"}]}
    )
    assert "retrieve" not in settings.key_settings()
    assert settings_for(policy).key_settings()["retrieve"]["passages"] == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"retrieve": {"checkpoints": ["sfd"]}}, r"retrieve\.checkpoints: 'sfd' is none .*'sft'"),
        ({"retrieve": {"corpus": []}}, "at least 1 item"),
        ({"retrieve": {"passages": 0}}, "greater than 0"),
        ({"checkpoints": {"sft": "a/b", "sft+retrieval": "a/b"}, "plain": []}, "name another"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    policy: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        settings_for(policy, **changes)


def test_what_can_not_be_looked_up_in_is_refused_before_work_starts(
    make_context: Callable[..., Any],
    policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def checked(settings: EvaluateSettings) -> None:
        check(settings, make_context(settings, inputs(settings)).hand)

    checked(settings_for(policy))
    empty, bad = tmp_path / "empty.txt", tmp_path / "bad.txt"
    empty.write_text("")
    bad.write_bytes(b"\xff\xfe\xff")
    for path, told in ((empty, "it is empty|no usable rows"), (bad, "is not UTF-8 text")):
        with pytest.raises(SourceError, match=rf"retrieve\.corpus\.0: .*({told})"):
            checked(settings_for(policy, path))
    with pytest.raises(HandOverError, match=r"retrieve\.passage_tokens .* holds 512"):
        checked(settings_for(policy, retrieve={"passage_tokens": 506}))
    monkeypatch.setattr("data.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"retrieval needs bm25s.*\[retrieval\]"):
        checked(settings_for(policy))
