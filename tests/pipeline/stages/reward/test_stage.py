"""The reward stage, as a recipe runs it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.errors import HandOverError, Interrupted, ModelError, SourceError, TrainingError
from data.records import Message
from pipeline.contract.console import Console
from pipeline.contract.handover import HandOver
from pipeline.contract.settings import Lora
from pipeline.stages.reward.rows import read_rows
from pipeline.stages.reward.settings import RewardSettings
from pipeline.stages.reward.stage import KIND, check, run
from reward.quality.calibration import demonstration_bias
from reward.quality.quality import quality as counted_quality

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile with")

FAST = {
    "prompts_per_step": 8,
    "learning_rate": 1e-2,
    "heldout_share": 0.25,
    "evaluate_every": 3,
    "save_every": 2,
    "bf16": False,
}


def chat(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def write_rankings(path: Path, n: int, *, seed: int = 0, start: int = 0) -> Path:
    """Two to four completions, ranked by how many are z; every fifth ranking ties throughout."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(start, start + n):
            counts = rng.sample(range(6), rng.choice((2, 3, 4)))
            texts = ["".join(rng.sample("z" * c + "abcdef"[: 6 - c], 6)) for c in counts]
            ranks = [sorted(counts, reverse=True).index(c) + 1 for c in counts]
            if number % 5 == 4:
                ranks = [1] * len(ranks)
            row = {"prompt": chat(f"say {number}"), "completions": texts, "ranks": ranks}
            file.write(json.dumps({**row, "id": str(number)}) + "\n")
    return path


@pytest.fixture
def policy(save_policy: Callable[..., Path], tiny_tokenizer: Callable[..., Any]) -> Path:
    return save_policy(tiny_tokenizer(vocab_size=263))


def settings_of(policy: Path, rankings: Path, **more: Any) -> RewardSettings:
    return RewardSettings(
        model=str(policy), **{"train": ({"path": str(rankings)},), **FAST, **more}
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_it_learns_and_leaves_model_quality_and_pairs(
    make_context: Callable[..., Any],
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scored_pair: Callable[..., Any],
) -> None:
    from reward.learned.model import RewardModel

    rankings = write_rankings(tmp_path / "r.jsonl", 160)
    demonstrations = tmp_path / "demonstrations.jsonl"
    lines = [{"messages": [*chat("hi"), {"role": "assistant", "content": w}]} for w in "abcd"]
    demonstrations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    book = tmp_path / "book.txt"
    book.write_text("hi and good day")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = settings_of(
        policy, rankings, epochs=5, demonstrations=({"path": str(demonstrations)},),
        retrieve={"corpus": [{"path": str(book)}]},
    )  # fmt: skip
    context = make_context(settings, {"model": policy})
    context.console = Console()
    metrics: dict[str, Any] = run(context)

    assert metrics["eval/accuracy"] > 0.85
    assert metrics["eval/accuracy_low"] < metrics["eval/accuracy"] <= metrics["eval/accuracy_high"]
    # All completions have six letters: length tells nothing, and every pair is matched.
    assert metrics["eval/longer_wins"] == metrics["eval/shorter_wins"] == 0.5
    assert metrics["eval/accuracy_length_matched"] == metrics["eval/accuracy"]
    assert metrics["n_dropped_ties"] > 0

    quality = json.loads((context.folder / "quality.json").read_text())
    assert quality["judged_by"] == "heldout"
    assert quality["beats_length"]["state"] == "beats" and quality["warning"] is None
    assert metrics["eval/over_length_rule"] == pytest.approx(metrics["eval/accuracy"] - 0.5)
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("  the reward model beats always taking the longer answer: right on ")
    )
    assert quality["n_pairs"] == metrics["eval/n_pairs"]
    pairs = read_lines(context.folder / "heldout.jsonl")
    right = [
        0.5 if p["better_score"] == p["worse_score"] else p["better_score"] > p["worse_score"]
        for p in pairs
    ]
    assert sum(right) / len(right) == pytest.approx(quality["accuracy"])
    recounted = counted_quality([scored_pair(row) for row in pairs])
    assert {key: quality[key] for key in recounted} == json.loads(json.dumps(recounted))
    # A bag of words was fitted on the rankings to learn: it knows the few words that come again.
    words = [
        0.5 if p["better_words"] == p["worse_words"] else p["better_words"] > p["worse_words"]
        for p in pairs
    ]
    assert sum(words) / len(words) == pytest.approx(metrics["eval/bag_of_words"])
    assert 0.5 < metrics["eval/bag_of_words"] < metrics["eval/accuracy"]

    model = RewardModel.load(context.folder / "model", device="cpu")
    some = pairs[:5]
    scores = model.score([p["prompt"] for p in some], [p["better"] for p in some])
    assert scores == pytest.approx([p["better_score"] for p in some], abs=1e-5)
    shown = read_lines(context.folder / "demonstrations.jsonl")
    assert all(row["prompt"][-1]["content"].startswith(book.read_text()) for row in shown)
    recounted_bias = demonstration_bias([row["score_without_bias"] for row in shown])
    assert model.bias == metrics["reward_bias"] == recounted_bias.bias != 0
    assert quality["bias"] == {
        "reward_bias": recounted_bias.bias, "demonstrations": len(shown),
        "deviation": recounted_bias.deviation,
    }  # fmt: skip
    loaded = model.score([row["prompt"] for row in shown], [row["response"] for row in shown])
    without = [row["score_without_bias"] for row in shown]
    assert loaded == pytest.approx([model.bias + score for score in without], abs=1e-5)
    demonstrated = model.score([row["prompt"] for row in shown], list("abcd"))
    assert sum(demonstrated) == pytest.approx(0, abs=1e-4)
    logged = read_lines(context.folder / "metrics.jsonl")
    assert [row["step"] for row in logged] == list(range(1, metrics["steps"] + 1))
    assert {"train/loss", "train/accuracy", "train/learning_rate"} <= set(logged[0])
    assert "eval/accuracy" in logged[-1]


def test_a_run_that_was_stopped_ends_in_the_same_files(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    settings = settings_of(policy, write_rankings(tmp_path / "r.jsonl", 60), epochs=2)
    whole = make_context(settings, {"model": policy}, tmp_path / "whole")
    metrics = run(whole)
    for looks in (3, 4):
        stopped = make_context(settings, {"model": policy}, tmp_path / "cut", stop_after=looks)
        with pytest.raises(Interrupted):
            run(stopped)
    resumed = make_context(settings, {"model": policy}, tmp_path / "cut")
    assert run(resumed) == metrics
    for name in ("model/model.safetensors", "model/config.json", "quality.json", "heldout.jsonl"):
        assert (whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes(), name

    def without_times(folder: Path) -> list[dict[str, Any]]:
        rows = read_lines(folder / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert without_times(whole.folder) == without_times(resumed.folder)


def test_it_starts_from_a_gguf_file_with_a_tokenizer_of_another_stage(
    make_context: Callable[..., Any],
    as_gguf: Callable[[Path, Path], Path],
    policy: Path,
    tmp_path: Path,
) -> None:
    from reward.learned.model import RewardModel

    file = as_gguf(policy, tmp_path / "policy.gguf")
    settings = settings_of(file, write_rankings(tmp_path / "r.jsonl", 40), tokenizer=str(policy))
    context = make_context(settings, {"model": str(file), "tokenizer": policy})
    assert run(context)["steps"] > 0
    assert len(RewardModel.load(context.folder / "model", device="cpu").score(["a"], ["z"])) == 1


def test_gradient_checkpointing_saves_memory_and_changes_nothing_else(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    enabled: list[str] = []
    enable = PreTrainedModel.activation_checkpointing_enable

    def recorded(self: Any, *arguments: Any, **options: Any) -> None:
        enabled.append(type(self).__name__)
        enable(self, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "activation_checkpointing_enable", recorded)
    rankings = write_rankings(tmp_path / "r.jsonl", 40)
    weights = []
    for setting in (False, True):
        settings = settings_of(policy, rankings, gradient_checkpointing=setting)
        context = make_context(settings, {"model": policy}, tmp_path / str(setting))
        run(context)
        weights.append((context.folder / "model/model.safetensors").read_bytes())
    assert enabled == ["LlamaForSequenceClassification"]
    assert weights[0] == weights[1]


def test_an_adapter_is_published_merged_and_apart_and_resumes_exactly(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    from reward.learned.model import RewardModel
    from reward.network.lora_files import read_origin

    rankings = write_rankings(tmp_path / "r.jsonl", 60)
    settings = settings_of(policy, rankings, epochs=2, lora={"rank": 4, "alpha": 8})
    whole = make_context(settings, {"model": policy}, tmp_path / "whole")
    metrics = run(whole)
    with pytest.raises(Interrupted):
        run(make_context(settings, {"model": policy}, tmp_path / "cut", stop_after=3))
    resumed = make_context(settings, {"model": policy}, tmp_path / "cut")
    assert run(resumed) == metrics
    files = ("model.safetensors", "config.json"), ("adapter_model.safetensors", "trunk.json")
    for folder, names in zip(("model", "adapter"), files, strict=True):
        for name in names:
            ours, theirs = (c.folder / folder / name for c in (resumed, whole))
            assert ours.read_bytes() == theirs.read_bytes(), name
    assert read_origin(whole.folder / "adapter").base == str(policy)
    model = RewardModel.load(whole.folder / "model", device="cpu")
    some = read_lines(whole.folder / "heldout.jsonl")[:5]
    scores = model.score([p["prompt"] for p in some], [p["better"] for p in some])
    assert scores == pytest.approx([p["better_score"] for p in some], abs=1e-5)


def test_a_tokenizer_beside_the_model_goes_into_the_checkpoint(
    make_context: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
    save_policy: Callable[..., Path],
    tmp_path: Path,
) -> None:
    tokenizer = tiny_tokenizer(vocab_size=263)
    tokenizer.pad_token = tokenizer.eos_token
    model = save_policy(tokenizer)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "adopted")
    rankings = write_rankings(tmp_path / "r.jsonl", 40)
    own = settings_of(model, rankings)
    with pytest.raises(ModelError, match="they must be two tokens"):
        run(make_context(own, {"model": model}))
    settings = settings_of(model, rankings, tokenizer=str(tmp_path / "adopted"))
    context = make_context(settings, {"model": model, "tokenizer": tmp_path / "adopted"})
    run(context)
    config = json.loads((context.folder / "model" / "config.json").read_text())
    kept = json.loads((context.folder / "model" / "tokenizer_config.json").read_text())
    assert config["pad_token_id"] == 2
    assert kept["pad_token"] == "<|endoftext|>"


def test_the_quality_is_taken_from_eval_rankings_and_they_are_not_learnt(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    learnt = write_rankings(tmp_path / "r.jsonl", 40)
    judged = write_rankings(tmp_path / "judged.jsonl", 20, start=30, seed=1)
    settings = settings_of(policy, learnt, eval_rankings=str(judged))
    context = make_context(settings, {"model": policy, "eval_rankings": judged})
    metrics = run(context)
    quality = json.loads((context.folder / "quality.json").read_text())
    assert quality["judged_by"] == "eval_rankings"
    assert quality["n_prompts"] == 16  # four of twenty tie throughout
    assert quality["heldout"]["n_pairs"] > 0
    # 30 prompts are left, 8 of them held out; every fifth of all ties.
    assert metrics["n_rankings"] + metrics["n_dropped_ties"] == 22


def test_rankings_of_another_stage_are_read(
    make_context: Callable[..., Any],
    make_artifact: Callable[..., Any],
    policy: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "rankings"
    folder.mkdir()
    write_rankings(folder / "rankings.jsonl", 40)
    artifact = make_artifact(folder, stage="rankings", kind="rankings")
    settings = RewardSettings(model=str(policy), rankings="rankings", **FAST)
    context = make_context(settings, {"model": policy, "rankings": artifact})
    metrics = run(context)
    assert metrics["n_rankings"] + metrics["n_dropped_ties"] == 30


def test_nan_stops_and_publishes_nothing(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    settings = settings_of(
        policy,
        write_rankings(tmp_path / "r.jsonl", 60),
        learning_rate=1e30,
        max_gradient_norm=1e30,
        schedule="constant",
        epochs=3,
    )
    context = make_context(settings, {"model": policy})
    with pytest.raises(TrainingError, match="last good checkpoint is kept"):
        run(context)
    assert not (context.folder / "model").exists()


def test_too_many_truncated_texts_stop_the_stage(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    settings = settings_of(policy, write_rankings(tmp_path / "r.jsonl", 20), max_length=8)
    with pytest.raises(SourceError, match="longer than 8 tokens, more than max_truncated_share"):
        run(make_context(settings, {"model": policy}))
    allowed = settings.model_copy(update={"max_truncated_share": 1.0})
    assert run(make_context(allowed, {"model": policy}))["n_truncated"] > 0


def test_rows_that_are_no_rankings_are_refused(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(SourceError, match=r"train\.0 holds Document rows"):
        run(make_context(settings_of(policy, path), {"model": policy}))


@pytest.mark.parametrize("field", ["heldout", "eval_rankings"])
def test_that_all_prompts_are_held_out_is_told(
    policy: Path, make_context: Callable[..., Any], tmp_path: Path, field: str
) -> None:
    path = write_rankings(tmp_path / "r.jsonl", 8)
    judged: Any = [{"path": str(path)}] if field == "heldout" else str(path)
    context = make_context(settings_of(policy, path, **{field: judged}), {field: path})
    with pytest.raises(SourceError, match=f"is held out too, by {field}; nothing is left"):
        read_rows(context)


def test_settings_need_something_to_learn_and_something_to_judge() -> None:
    with pytest.raises(ValidationError, match="needs `rankings`"):
        RewardSettings(model="sft")
    with pytest.raises(ValidationError, match="nothing is held out"):
        RewardSettings(model="sft", rankings="rankings", heldout_share=0)
    with pytest.raises(ValidationError, match="lerning_rate"):
        RewardSettings(model="sft", rankings="rankings", lerning_rate=1e-5)  # type: ignore[call-arg]
    assert RewardSettings(model="sft", rankings="r", learning_rate="9e-6").learning_rate == 9e-6


def test_check_refuses_what_does_not_fit(policy: Path, tmp_path: Path) -> None:
    hand = HandOver("reward", {}, lambda _: None)
    rankings = tmp_path / "r.jsonl"
    check(settings_of(policy, rankings), hand)
    with pytest.raises(HandOverError, match="max_length is 999 tokens"):
        check(settings_of(policy, rankings, max_length=999), hand)
    config = json.loads((policy / "config.json").read_text())
    config["architectures"] = ["T5ForConditionalGeneration"]
    (policy / "config.json").write_text(json.dumps(config))
    with pytest.raises(HandOverError, match="T5ForConditionalGeneration"):
        check(settings_of(policy, rankings), hand)


def test_the_kind_says_what_it_provides() -> None:
    assert KIND.provides >= {"reward"}
    assert KIND.trains
    assert SimpleNamespace(**RewardSettings.model_fields).model.metadata[0].provides == "policy"


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # asked for by torch's own compiler
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_compiled_layers_learn_what_plain_ones_do_and_resume_exactly(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path, lora: Any
) -> None:
    from torch._dynamo.utils import counters

    rankings = write_rankings(tmp_path / "r.jsonl", 60)
    found = {}
    torch._dynamo.reset()  # of what other tests compiled
    for name in ("plain", "compiled", "stopped"):
        counters.clear()
        settings = settings_of(policy, rankings, compile=name != "plain", lora=lora, epochs=2)
        context = make_context(settings, {"model": policy}, tmp_path / name)
        if name == "stopped":
            context.should_stop = iter([False, False, True]).__next__
            with pytest.raises(Interrupted):
                run(context)
            context.should_stop = lambda: False
        run(context)
        if name != "stopped":  # which takes what is compiled already
            assert bool(counters["frames"]["ok"]) == (name == "compiled")
        found[name] = [row["better_score"] for row in read_lines(context.folder / "heldout.jsonl")]
    assert found["compiled"] == pytest.approx(found["plain"], abs=1e-4)
    assert found["stopped"] == found["compiled"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_one_program_serves_trees_of_all_sizes_in_bf16(
    make_context: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    rankings = write_rankings(tmp_path / "r.jsonl", 60)
    settings = settings_of(
        policy, rankings, compile=True, bf16=True, prompts_per_step=2, evaluate_every=0
    )
    metrics = run(make_context(settings, {"model": policy}))
    assert metrics["steps"] > 15
    # One for the first sizes, and one for any; torch gives up, and runs all plainly, after eight.
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
