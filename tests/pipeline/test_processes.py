"""Many processes give what one gives, with whole and with sharded weights, in all stages."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("spread_stages.py")
STAGES = ("pretrain", "sft", "reward", "ppo", "shared", "variant")
ADAPTERS = ("adapter", "trunk", "read")
DONE = [
    *(("fsdp", stage) for stage in STAGES),
    *(("ddp", stage) for stage in STAGES + ADAPTERS),
]
"""Adapters are not trained on sharded weights."""
WENT_ON = [
    *(("alone", stage) for stage in STAGES[:-1] + ADAPTERS),
    *(("fsdp", stage) for stage in STAGES[:-1]),
    *(("ddp", stage) for stage in ("pretrain", "ppo", *ADAPTERS)),
]
"""What went on elsewhere, as the script says it."""
RUNS = ("alone-1", "fsdp-2", "ddp-2")

pytestmark = [pytest.mark.first, pytest.mark.timeout(1500)]


def words(rng: random.Random, most: int) -> str:
    return "".join(rng.choices("abcdefgh ", k=rng.randint(1, most)))


def write_inputs(folder: Path, policy: Any, tokenizer: Any) -> None:
    """Write a policy, a reward model, and rows of uneven length whose numbers are odd."""
    from reward.learned.model import RewardModel
    from reward.learned.on_trunk import adapt, save_models

    rng = random.Random(0)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    RewardModel.start(folder / "policy", seed=0).save(folder / "reward")
    model, base = RewardModel.start(folder / "policy", seed=1), str(folder / "policy")
    save_models(
        model,
        adapt(model, base=base, rank=2, alpha=4, targets="all-linear", seed=2),
        folder / "attached",
    )
    rows: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": words(rng, 60)} for _ in range(60)],
        "prompts": [{"prompt": words(rng, 12)} for _ in range(11)],
        "talks": [{"prompt": words(rng, 9), "completion": words(rng, 30)} for _ in range(27)],
        "rankings": [],
    }
    for number in range(27):
        k = rng.choice((2, 3, 5))
        texts = [words(rng, 9) for _ in range(k)]
        rows["rankings"].append(
            {"prompt": f"say {number}", "completions": texts, "ranks": list(range(1, k + 1))}
        )
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    spread_out: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
    tiny_policy: Callable[..., Any],
) -> Path:
    """The stages on one process, and on two with sharded and with whole weights."""
    folder = tmp_path_factory.mktemp("processes")
    tokenizer = tiny_tokenizer()
    write_inputs(folder, tiny_policy(tokenizer, layers=2), tokenizer)
    alone = spread_out(folder, 1, SCRIPT, folder, "alone")
    spread_out(folder, 2, SCRIPT, folder, "fsdp", "ddp")()
    alone()
    return folder


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def require_same(ours: Path, theirs: Path) -> None:
    """Compare the metrics of every step and all published weights of two runs of a stage."""
    one, many = rows_of(ours), rows_of(theirs)
    assert len(one) == len(many) >= 3
    for expected, found in zip(one, many, strict=True):
        assert expected.keys() == found.keys()
        for name, figure in expected.items():
            if name.startswith(("time/", "seconds", "train/tokens_per_second", "train/epoch")):
                continue
            # A share of clipped tokens jumps where one of some hundred tokens is at the bound.
            close = 2.5e-2 if "clipfrac" in name else 1e-5
            assert found[name] == pytest.approx(figure, abs=close, rel=close), name
    published = sorted(path.relative_to(ours) for path in ours.glob("*/*model.safetensors"))
    assert published
    for path in published:
        expected_weights, weights = load_file(ours / path), load_file(theirs / path)
        assert expected_weights.keys() == weights.keys()
        for name, tensor in expected_weights.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("stage", ["ppo", "read"])
def test_processes_share_the_prompts_of_an_evaluation(runs: Path, stage: str) -> None:
    modes = ["alone-1", "ddp-2", *["fsdp-2"] * (stage not in ADAPTERS)]
    found = {}
    for mode in modes:
        lines = (runs / mode / stage / "evaluation.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[mode] = [(row["update"], row["index"], row["response"]) for row in rows]
    assert [row[:2] for row in found["alone-1"]] == [(u, i) for u in (0, 2, 3) for i in range(5)]
    assert all(found[mode] == found["alone-1"] for mode in modes)


def require_moved(folder: Path, runs: Path) -> None:
    """A run that learns nothing would compare equal to anything."""
    start_weights = load_file(runs / "policy" / "model.safetensors")
    weights = load_file(folder / "model" / "model.safetensors")
    moved = max(float((weights[n] - t).abs().max()) for n, t in start_weights.items())
    assert moved > 1e-3


@pytest.mark.parametrize(("mode", "stage"), DONE)
def test_two_processes_give_the_figures_and_weights_of_one(
    runs: Path, mode: str, stage: str
) -> None:
    require_moved(runs / "alone-1" / stage, runs)
    require_same(runs / "alone-1" / stage, runs / f"{mode}-2" / stage)


@pytest.mark.parametrize(("mode", "stage"), WENT_ON)
def test_a_state_goes_on_on_another_number_of_processes(runs: Path, mode: str, stage: str) -> None:
    elsewhere = runs / ("alone-1" if mode == "alone" else f"{mode}-2") / f"{stage}-elsewhere"
    require_same(runs / "alone-1" / stage, elsewhere)


@pytest.mark.parametrize("stage", ["shared", "read"])
def test_processes_count_the_calls_of_all(runs: Path, stage: str) -> None:
    rows = rows_of(runs / "ddp-2" / stage)
    calls = [row["objective/calls"] for row in rows if "objective/calls" in row]
    assert len(calls) == 3 and all(0 < one < 1 for one in calls)


def test_no_response_has_as_many_tokens_as_it_may_where_the_score_stands_past_the_last(
    runs: Path,
) -> None:
    samples = (runs / "alone-1" / "variant" / "samples.jsonl").read_text().splitlines()
    lengths = [json.loads(line)["tokens"] for line in samples]
    assert len(lengths) == 24 and max(lengths) < 60 and len(set(lengths)) > 5


def test_weights_are_sharded_where_asked_for(runs: Path) -> None:
    facts = {mode: json.loads((runs / mode / "facts.json").read_text()) for mode in RUNS}
    assert [facts[mode]["processes"] for mode in RUNS] == [1, 2, 2]
    modules = {mode: facts[mode]["modules"] for mode in RUNS}
    # pretraining, SFT, reward model, PPO's policy and value model, policy with a head, policy and
    # value model again; adapters: reward model, policy with a head, policy and head
    assert [len(modules[mode]) for mode in RUNS] == [12, 8, 12]
    for module in modules["fsdp-2"]:
        assert module["parameters"] == ["DTensor"], module
        assert module["share"] == pytest.approx(0.5, abs=0.01), module
    for mode in ("alone-1", "ddp-2"):
        assert all(module["parameters"] == ["Parameter"] for module in modules[mode])


def test_processes_have_split_micro_batches_to_make_as_many_passes(runs: Path) -> None:
    found = {mode: json.loads((runs / mode / "facts.json").read_text())["split"] for mode in RUNS}
    assert found["alone-1"] == [0]
    assert sum(found["fsdp-2"]) == sum(found["ddp-2"]) > 0


def test_what_sharded_processes_publish_loads(runs: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    for stage in ("ppo", "shared"):
        folder = runs / "fsdp-2" / stage
        policy, policy_info = AutoModelForCausalLM.from_pretrained(
            folder / "model", output_loading_info=True
        )
        value, value_info = AutoModelForTokenClassification.from_pretrained(
            folder / "value_model", output_loading_info=True
        )
        assert not policy_info["missing_keys"] and not value_info["missing_keys"]
        ids = torch.arange(8, 14)[None]
        assert policy(ids).logits.isfinite().all() and value(ids).logits.shape == (1, 6, 1)


def test_processes_judge_a_reward_model_alike(runs: Path) -> None:
    one, two = (
        json.loads((runs / mode / "reward" / "quality.json").read_text())
        for mode in ("alone-1", "fsdp-2")
    )
    assert two["n_pairs"] == one["n_pairs"] > 0
    assert two["accuracy"] == one["accuracy"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile with")
def test_compiled_layers_give_the_figures_of_plain_ones_on_one_process_and_on_two(
    runs: Path, spread_out: Callable[..., Any]
) -> None:
    alone = spread_out(runs, 1, SCRIPT, runs, "compiled")
    spread_out(runs, 2, SCRIPT, runs, "compiled", "compiled_fsdp")()
    alone()
    for stage in ("pretrain", "reward", "ppo", *ADAPTERS):
        require_same(runs / "alone-1" / stage, runs / "compiled-1" / stage)
        require_same(runs / "compiled-1" / stage, runs / "compiled-2" / stage)
    sharded = runs / "compiled_fsdp-2" / "pretrain"
    require_same(runs / "compiled-1" / "pretrain", sharded)


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_deepspeed_gives_the_figures_of_one_process(
    runs: Path, spread_out: Callable[..., Any], zero: str
) -> None:
    pytest.importorskip("deepspeed")
    spread_out(runs, 2, SCRIPT, runs, zero, environment={"DS_ACCELERATOR": "cpu"})()
    for stage in STAGES[:3]:
        require_same(runs / "alone-1" / stage, runs / f"{zero}-2" / stage)
        require_same(runs / "alone-1" / stage, runs / f"{zero}-2" / f"{stage}-elsewhere")


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_four_processes_give_the_figures_of_one(runs: Path, spread_out: Callable[..., Any]) -> None:
    spread_out(runs, 4, SCRIPT, runs, "fsdp", "ddp")()
    for mode, stage in DONE:
        require_same(runs / "alone-1" / stage, runs / f"{mode}-4" / stage)
        if (mode, stage) in WENT_ON:
            require_same(runs / "alone-1" / stage, runs / f"{mode}-4" / f"{stage}-elsewhere")
