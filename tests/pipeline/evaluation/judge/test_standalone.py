"""Checkpoints judged outside of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError, UsageError
from data.json_lines import read_json_lines
from pipeline.contract.console import Console
from pipeline.contract.settings import SourceSettings
from pipeline.evaluation.benchmarks.settings import ChoicesSettings
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.settings import AnswerSettings
from pipeline.evaluation.judge.standalone import Request, checkpoint_location, evaluate_checkpoints
from pipeline.generation.generate import Sample
from pipeline.generation.tools.calls import Call
from pipeline.recipe.suite import load_suites

WORLD = SourceSettings(world="eval_prompts")


@pytest.fixture
def stage_folder(
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
    make_artifact: Callable[..., Any],
    tmp_path: Path,
) -> Path:
    """Publish a tiny policy as a stage."""
    save_policy(tiny_tokenizer(), tmp_path / "sft" / "model", context=256)
    return Path(make_artifact(tmp_path / "sft", stage="sft", kind="sft").folder)


def evaluated(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "checkpoints": {"mine": str(folder)},
        "prompts": WORLD,
        "limit": 4,
        "answers": AnswerSettings(max_new_tokens=4),
        "resamples": 20,
    }
    request = Request(**(given | changes))
    return evaluate_checkpoints(request, out=out, console=Console(quiet=True))


def test_a_stage_folder_is_judged_by_gold_on_the_worlds_prompts(
    stage_folder: Path, tmp_path: Path
) -> None:
    results = evaluated(stage_folder, tmp_path / "out")
    assert results == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert results["checkpoints"]["mine"]["n"] == 4
    assert results["checkpoints"]["mine"]["gold_reward"] is not None
    assert len([*read_json_lines(tmp_path / "out" / "samples.jsonl")]) == 4
    assert len([*(tmp_path / "out" / "cache").iterdir()]) == 1


def test_a_further_checkpoint_alone_is_computed(
    stage_folder: Path,
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def judged(**checkpoints: Path) -> dict[str, Any]:
        return evaluate_checkpoints(
            Request(
                checkpoints={name: str(place) for name, place in checkpoints.items()},
                prompts=WORLD, limit=4, answers=AnswerSettings(max_new_tokens=4), resamples=20,
            ),
            out=tmp_path / "out",
        )  # fmt: skip

    alone = judged(mine=stage_folder)
    assert "kept from before" not in capsys.readouterr().out
    other = save_policy(tiny_tokenizer(), tmp_path / "other", seed=1, context=256)
    both = judged(mine=stage_folder, other=other)
    assert both["checkpoints"]["mine"] == alone["checkpoints"]["mine"]
    told = capsys.readouterr()
    assert "mine: answers: kept from before" in told.out + told.err
    assert "other: answers: kept" not in told.out + told.err


def test_answers_may_call_tools(
    stage_folder: Path,
    save_policy: Callable[..., Path],
    tiny_tokenizer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes = []

    def generate(_: Any, prompts: list[list[int]], *, tools: Any, **__: Any) -> list[Sample]:
        boxes.append(tools and [*tools.tools])
        calls = (Call("calculator", {"expression": "1+1"}, "2"), Call("x", {}, "error: no", True))
        own = [True, False, True]
        return [Sample([20, 21, 22], False, [0.0] * 3, own, calls[: n % 3]) for n in range(4)]

    monkeypatch.setattr("pipeline.evaluation.judge.judge.generate", generate)
    other = save_policy(tiny_tokenizer(), tmp_path / "other", seed=1, context=256)
    checkpoints = {"mine": str(stage_folder), "other": str(other)}
    asked = {"max_new_tokens": 4, "tools": "calculator"}
    answers = AnswerSettings.model_validate(asked)
    results = evaluated(stage_folder, tmp_path / "out", checkpoints=checkpoints, answers=answers)
    assert boxes == [["calculator"]] * 2
    rows = [*read_json_lines(tmp_path / "out" / "samples.jsonl")]
    assert [len(row["calls"]) for row in rows] == [0, 1, 2, 0] * 2
    assert rows[2]["calls"] == [
        {"name": "calculator", "arguments": {"expression": "1+1"}, "result": "2", "error": False,
         "cut": False},
        {"name": "x", "arguments": {}, "result": "error: no", "error": True, "cut": False},
    ]  # fmt: skip
    assert {row["n_tokens"] for row in rows} == {2}
    found = results["checkpoints"]["mine"]
    assert found["calls_per_response"] == 0.75 and found["failed_call_share"] == 1 / 3
    recounted: Any = figures(rows)["checkpoints"]
    assert found | recounted["mine"] == found
    # Without tools nothing is told of them, and what was kept of answers with tools is not taken.
    plain = evaluated(stage_folder, tmp_path / "out", checkpoints=checkpoints)
    assert boxes[2:] == [None] * 2 and "calls_per_response" not in plain["checkpoints"]["mine"]
    assert "calls" not in next(iter(read_json_lines(tmp_path / "out" / "samples.jsonl")))


def test_other_prompts_have_no_gold(stage_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "Once"}) + "\n")
    prompts = SourceSettings(path=str(path))
    results = evaluated(stage_folder, tmp_path / "out", prompts=prompts)
    assert results["checkpoints"]["mine"]["gold_reward"] is None
    with pytest.raises(UsageError, match="embedded world"):
        evaluated(stage_folder, tmp_path / "out", prompts=prompts, gold=True)


def test_an_unknown_name_is_refused(stage_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'yours' is none of the checkpoints"):
        evaluated(stage_folder, tmp_path / "out", reference="yours")


def test_a_damaged_stage_is_refused(stage_folder: Path) -> None:
    assert checkpoint_location(str(stage_folder)) == str(stage_folder / "model")
    assert checkpoint_location("owner/name") == "owner/name"
    with (stage_folder / "model" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        checkpoint_location(str(stage_folder))


def test_tasks_alone_need_no_prompts(stage_folder: Path, tmp_path: Path) -> None:
    tasks = load_suites(["world"])
    asked = [task.model_copy(update={"limit": 2, "max_new_tokens": 3}) for task in tasks]
    results = evaluated(stage_folder, tmp_path / "out", prompts=None, tasks=asked)
    assert {one["metric"] for one in results["tasks"]} == {
        "chance", "facts_correct", "facts_invented", "strangers_admitted", "strangers_invented",
    }  # fmt: skip
    assert results["checkpoints"] == {} and results["prompts"]["n"] == 0
    assert len([*read_json_lines(tmp_path / "out" / "tasks.jsonl")]) == 4
    assert not (tmp_path / "out" / "samples.jsonl").exists()
    with pytest.raises(UsageError, match="no prompts to answer; name some with --prompts"):
        evaluated(stage_folder, tmp_path / "out", prompts=None)


@pytest.mark.parametrize("architecture", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_an_encoder_decoder_is_judged_and_what_it_has_not_is_told(
    save_pair: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    ours, theirs = (
        save_pair(architecture, tmp_path / name, seed=seed, context=256)
        for name, seed in (("ours", 1), ("theirs", 2))
    )
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(
        json.dumps({"question": "Who bakes?", "choices": ["Ada", "Bo Finch"], "answer": 0}) + "\n"
    )
    results = evaluated(
        ours, tmp_path / "out", checkpoints={"ours": str(ours), "theirs": str(theirs)},
        reference="ours", texts=SourceSettings(world="corpus_heldout"),
        tasks=[ChoicesSettings(kind="choices", name="quiz", source={"path": str(quiz)})],
    )  # fmt: skip
    mine, other = (results["checkpoints"][name] for name in ("ours", "theirs"))
    assert (mine["n"], mine["kl_to_reference"]) == (4, 0.0) and other["kl_to_reference"] != 0
    assert mine.get("perplexity") is None and mine.get("bits_per_byte") is None
    assert "it has no perplexity and no bits per byte" in " ".join(mine["notes"])
    assert results["alignment_tax"] == []
    assert results["tasks"]
