"""The estimates beside what the stages really do here: FLOPs and live bytes within 15 %."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.records import chat
from pipeline.contract.console import Console
from pipeline.estimate.model.assumptions import Assumptions
from pipeline.estimate.model.costs import StageCost
from pipeline.estimate.model.hardware import GIB, Accelerator, Cluster
from pipeline.estimate.planner import estimate_recipe
from pipeline.models.load import bf16_supported
from pipeline.recipe.load import Recipe, load_recipe
from pipeline.run.planning import Selection
from pipeline.run.runner import execute

# Its speed doesn't matter here; that in bf16 above 0 says that it has such products.
PROCESSOR = Cluster(Accelerator("cpu", 16 * GIB, 1e11, 1e11, 1e10))
WITHIN = 0.15
in_fp32_and_bf16 = pytest.mark.parametrize(
    "bf16",
    [
        pytest.param(False, id="fp32"),
        pytest.param(
            True,
            id="bf16",
            marks=pytest.mark.skipif(not bf16_supported(), reason="no bf16 products here"),
        ),
    ],
)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.fixture(autouse=True)
def no_wider_than_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TRL's head have no columns that it never writes to: a processor gives them no memory."""
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 300)


@pytest.fixture
def recipe(tmp_path: Path, local_policy: Callable[..., Path]) -> Callable[..., Recipe]:
    """Return a builder of recipes with all training stages: recipe("llama", hidden_size=64)."""

    def build(
        architecture: str = "llama",
        overrides: tuple[str, ...] = (),
        *,
        bf16: bool = False,
        **shape: Any,
    ) -> Recipe:
        start = str(local_policy(architecture, **shape))
        question = "Who lives by the river and runs the old mill at the bridge? "
        answers = ["The miller lives by the river. " * n for n in (1, 2, 2, 3)]
        texts = [{"text": f"{question} {answers[i % 4]}"} for i in range(60)]
        asked = [{"messages": chat(question + str(i), answers[i % 4])} for i in range(48)]
        ranked = [
            {"prompt": question + str(i), "completions": answers[:1] + answers[2:],
             "ranks": [1, 2, 3]}
            for i in range(24)
        ]  # fmt: skip
        stages = {
            "base": {
                "kind": "pretrain", "model": start, "steps": 4, "batch_size": 8,
                "train": [{"path": write_rows(tmp_path / "texts.jsonl", texts)}],
                "context_length": 64, "evaluate_every": 0,
            },
            "sft": {
                "kind": "sft", "model": start, "batch_size": 8, "max_length": 128,
                "train": [{"path": write_rows(tmp_path / "asked.jsonl", asked)}],
            },
            "reward": {
                "kind": "reward", "model": start, "prompts_per_step": 8, "max_length": 128,
                "train": [{"path": write_rows(tmp_path / "ranked.jsonl", ranked)}],
                "tokens_per_micro_batch": 4096, "evaluate_every": 0,
            },
            "ppo": {
                "kind": "ppo", "policy": start, "reward": "reward", "epochs": 2,
                "prompts": [{"path": str(tmp_path / "asked.jsonl")}], "max_prompt_tokens": 80,
                "episodes": 32, "batch_size": 16, "max_new_tokens": 40, "temperature": 1.0,
            },
            "dpo": {
                "kind": "dpo", "model": start, "batch_size": 8, "max_length": 128,
                "train": [{"path": str(tmp_path / "ranked.jsonl")}], "evaluate_every": 0,
            },
            "grpo": {
                "kind": "grpo", "policy": start, "group_size": 4,
                "reward": [{"rule": "length", "options": {"target": 9}}],
                "prompts": [{"path": str(tmp_path / "asked.jsonl")}], "max_prompt_tokens": 80,
                "episodes": 32, "batch_size": 16, "max_new_tokens": 40,
            },
        }  # fmt: skip
        for settings in stages.values():
            settings["bf16"] = bf16  # on every machine the same
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"stages": stages}))
        return load_recipe(path, overrides)

    return build


def costs_of(recipe: Recipe, assumed: Assumptions | None = None) -> dict[str, StageCost]:
    plan = estimate_recipe(recipe, PROCESSOR, assumed=assumed)
    return {verdict.cost.stage: verdict.cost for verdict in plan.verdicts}


def run_stage(recipe: Recipe, folder: Path, stage: str) -> None:
    execute(
        recipe, folder, selection=Selection(only=stage), launch=recipe.top.launch,
        console=Console(quiet=True),
    )  # fmt: skip


def assert_near(
    recipe: Recipe,
    measured: Any,
    folder: Path,
    *,
    flops: bool = True,
    memory: bool = True,
    stages: tuple[str, ...] = (),
) -> None:
    told = costs_of(recipe)
    for stage in stages or recipe.stages:
        found = measured(lambda stage=stage: run_stage(recipe, folder, stage), flops=flops)
        cost = told[stage]
        if flops:
            share = cost.flops / found.flops
            print(f"{stage}: FLOPs {share:.3f}")
            assert abs(share - 1) < WITHIN, f"{stage}: {share:.3f} of the FLOPs"
        if memory:
            share = cost.peak.total / found.peak
            print(f"{stage}: memory {share:.3f} ({cost.peak.name})")
            assert abs(share - 1) < WITHIN, f"{stage}: {share:.3f} of the bytes"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@in_fp32_and_bf16
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_flops_and_memory_of_every_training_stage(
    recipe: Callable[..., Recipe], measured: Any, tmp_path: Path, architecture: str, bf16: bool
) -> None:
    assert_near(recipe(architecture, bf16=bf16), measured, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@in_fp32_and_bf16
@pytest.mark.parametrize("what", ["flops", "memory"])
def test_micro_batches_checkpointing_and_a_shared_head(
    recipe: Callable[..., Recipe], measured: Any, tmp_path: Path, what: str, bf16: bool
) -> None:
    changes = (
        "base.micro_batch_size=4", "base.gradient_checkpointing=true",
        "sft.micro_batch_size=4", "sft.gradient_checkpointing=true",
        "reward.tokens_per_micro_batch=1024", "reward.gradient_checkpointing=true",
        "ppo.micro_batch_size=4", "ppo.gradient_checkpointing=true", "ppo.minibatches=2",
        "ppo.value=shared",
    )  # fmt: skip
    shape = {"hidden_size": 64, "layers": 4, "kv_heads": 2, "intermediate_size": 160}
    built = recipe("llama", changes, bf16=bf16, **shape)
    flops, memory = what == "flops", what == "memory"
    stages = ("base", "sft", "reward", "ppo")
    assert_near(built, measured, tmp_path / "run", flops=flops, memory=memory, stages=stages)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@in_fp32_and_bf16
@pytest.mark.parametrize("value", ["reward", "shared"])
def test_one_trunk(
    recipe: Callable[..., Recipe], measured: Any, tmp_path: Path, value: str, bf16: bool
) -> None:
    lora = "{rank: 4, alpha: 8}"
    changes = (
        f"reward.lora={lora}", "ppo.trunk=shared", f"ppo.value={value}", f"ppo.lora={lora}",
        "ppo.micro_batch_size=8", "ppo.minibatches=2",
    )  # fmt: skip
    shape = {"hidden_size": 64, "layers": 4, "kv_heads": 2, "intermediate_size": 160}
    built = recipe("llama", changes, bf16=bf16, **shape)
    assert_near(built, measured, tmp_path / "run", stages=("reward", "ppo"))


@pytest.mark.slow
@in_fp32_and_bf16
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["rankings", "evaluate", "tasks"])
def test_stages_that_only_sample(
    local_policy: Any, measured: Any, tmp_path: Path, kind: str, architecture: str, bf16: bool
) -> None:
    start = str(local_policy(architecture, hidden_size=96, layers=4, intermediate_size=256))
    stage: dict[str, Any] = {"kind": kind, "max_new_tokens": 40, "batch_size": 16, "bf16": bf16}
    # Enough prompts that the trial of the model, a constant that no estimate counts, is small.
    if kind == "rankings":
        stage |= {"model": start, "labeler": "gold", "completions": 2}
        stage["prompts"] = [{"world": "rm_prompts", "limit": 64}]
    else:
        stage |= {"kind": "evaluate", "checkpoints": {"sft": start}, "reference": "sft"}
        stage["prompts"] = [{"world": "eval_prompts", "limit": 64}]
    if kind == "tasks":
        question = "Who lives by the river and runs the old mill at the bridge? "
        quiz = [
            {"question": f"{question} {i}", "answer": 0,
             "choices": [f"{who} of the town, as everybody knows." for who in ("Ada", "Bo", "Cy")]}
            for i in range(200)
        ]  # fmt: skip
        source = {"path": write_rows(tmp_path / "quiz.jsonl", quiz)}
        stage["tasks"] = [
            {"kind": "choices", "source": source},
            {"kind": "world_facts", "limit": 40, "max_new_tokens": 40},
        ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stages": {kind: stage}}))
    # The memory of tasks is that of sampling, of which they are a part in so small a model.
    assert_near(load_recipe(path), measured, tmp_path / "run", memory=kind != "tasks")
