"""The ppo stage on encoder-decoders."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.errors import HandOverError, Interrupted
from pipeline.contract.handover import HandOver
from pipeline.stages.ppo.checks import check
from pipeline.stages.ppo.settings import PpoSettings
from pipeline.stages.ppo.stage import run

Build = Callable[..., Any]
RULE = ({"rule": "length", "options": {"target": 2}},)


@pytest.fixture
def pair_setting(setting: Build, save_pair: Build) -> Build:
    """Return a builder of contexts: pair_setting("t5", folder, **setting's arguments)."""

    def build(architecture: str, folder: str = "ppo", **changes: Any) -> Any:
        start = save_pair(architecture, hidden_size=8, layers=1)
        return setting(folder, policy=str(start), reward=RULE, **changes)

    return build


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("t5", {"score_position": "past_last", "reuse_logprobs": True}),
        ("bart", {"value": "shared", "ema_decay": 0.9, "value_warmup_updates": 1}),
    ],
)
def test_an_interrupted_run_ends_in_the_same_weights(
    pair_setting: Build, architecture: str, changes: dict[str, Any]
) -> None:
    changes |= {"adaptive_kl": {"target": 0.1, "horizon": 20}, "episodes": 16, "epochs": 1}
    whole = pair_setting(architecture, "whole", **changes)
    run(whole)
    with pytest.raises(Interrupted):
        run(pair_setting(architecture, "cut", stop_after=0, **changes))
    cut = pair_setting(architecture, "cut", **changes)
    run(cut)
    published = sorted(p.relative_to(whole.folder) for p in whole.folder.rglob("*.safetensors"))
    assert {path.name for path in published} == {"model.safetensors", "value_head.safetensors"}
    for path in published:
        ours, theirs = load_file(cut.folder / path), load_file(whole.folder / path)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
    samples = [(context.folder / "samples.jsonl").read_bytes() for context in (cut, whole)]
    assert samples[0] == samples[1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trunk": "shared"}, "trunk: shared is for causal policies"),
        ({"rollout": {"engine": "vllm"}}, "rollout.engine: vllm is for causal policies"),
        (
            {"tools": {"use": ["calculator"], "form": "template"}},
            "writes no turns of a chat",
        ),
        ({"ptx_coefficient": 1.0, "pretraining_sources": [{"path": "a.txt"}]}, "ptx_coefficient"),
        ({"max_prompt_tokens": 65}, "max_prompt_tokens is 65 tokens, the context of"),
        ({"max_prompt_tokens": 64, "max_new_tokens": 64}, "max_new_tokens + 1 is 65 tokens"),
    ],
)
def test_what_is_for_causal_policies_or_too_long_is_refused(
    save_pair: Build, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    settings = PpoSettings(
        policy=str(save_pair("bart", context=64)),
        reward=RULE,
        prompts=[{"path": str(tmp_path / "prompts.jsonl")}],
        **{"max_prompt_tokens": 64, "max_new_tokens": 63, **changes},
    )
    with pytest.raises(HandOverError, match=told.replace("+", r"\+")):
        check(settings, HandOver("ppo", {"ppo": settings}, lambda _: None))


def greetings(folder: Path) -> Path:
    """Write rows of names to greet, in one of three ways at random."""
    rng, rows = random.Random(0), []
    for _ in range(240):
        name = "".join(rng.choices("abcdefgh", k=3))
        said = rng.choice(("hello {}", "good day {}", "be well {}")).format(name)
        rows.append({"prompt": f"greet: {name}", "completion": said})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(path: Path, **stages: Any) -> Path:
    path.write_text(yaml.safe_dump({"stages": stages}))
    return path


def ppo(policy: str, rows: Path, **more: Any) -> dict[str, Any]:
    """Return a ppo stage that is paid for saying hello."""
    return {
        "kind": "ppo", "policy": policy, "prompts": [{"path": str(rows)}],
        "reward": [{"rule": "regex", "options": {"pattern": "hello"}}], "max_prompt_tokens": 30,
        "max_new_tokens": 16, "epochs": 2, "minibatches": 2, "bf16": False, "temperature": 1.0,
        **more,
    }  # fmt: skip


def rlhf(*arguments: object, cwd: Path) -> None:
    command = [str(Path(sys.executable).with_name("rlhf")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, cwd=cwd, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_two_processes_give_the_weights_of_one(
    save_pair: Build, architecture: str, tmp_path: Path
) -> None:
    start = save_pair(architecture)
    stage = ppo(
        str(start), greetings(tmp_path), batch_size=32, episodes=96, tokens_per_micro_batch=150,
        learning_rate=3e-3, score_position="past_last", whiten_rewards=True, max_gradient_norm=0.5,
    )  # fmt: skip
    path = write(tmp_path / "recipe.yaml", ppo=stage)
    sharded = ["--set", f"launch.config={Path(__file__).parents[4] / 'recipes/launch/fsdp2.yaml'}"]
    launches: dict[str, list[str]] = {"1": [], "2": [], "fsdp": sharded}
    published = []
    for name, more in launches.items():
        processes = "1" if name == "1" else "2"
        rlhf("run", path, "--out", tmp_path / name, "--processes", processes, *more, cwd=tmp_path)
        folder = tmp_path / name / "ppo"
        published.append({file: load_file(folder / file) for file in (
            "model/model.safetensors", "value_model/model.safetensors", "value_head.safetensors",
        )})  # fmt: skip
    alone = published[0]
    before = load_file(start / "model.safetensors")
    moved = [
        float((alone["model/model.safetensors"][n] - t).abs().max()) for n, t in before.items()
    ]
    assert max(moved) > 1e-3
    for together in published[1:]:
        for file, tensors in alone.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(
                    together[file][name], tensor, atol=1e-5, rtol=0, msg=f"{file} {name}"
                )


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("architecture", "objective", "value"),
    [("t5", "span_corruption", "separate"), ("bart", "denoising", "shared")],
)
def test_a_policy_learns_what_is_paid_from_any_of_three_seeds(
    architecture: str, objective: str, value: str, tmp_path: Path
) -> None:
    rows = greetings(tmp_path)
    learned = {
        "train": [{"path": str(rows)}], "heldout_share": 0.1, "batch_size": 16, "bf16": False,
        "learning_rate": 3e-3,
    }  # fmt: skip
    path = write(
        tmp_path / "recipe.yaml",
        tokenizer={
            "kind": "tokenizer", "objective": objective, "train": learned["train"],
            "vocab_size": 400,
        },
        base={
            **learned, "kind": "pretrain", "objective": objective, "architecture": architecture,
            "tokenizer": "tokenizer", "hidden_size": 32, "layers": 2, "heads": 2,
            "context_length": 32, "steps": 200,
        },
        sft={**learned, "kind": "sft", "model": "base", "max_steps": 200, "max_length": 32},
        ppo=ppo(
            "sft", rows, value=value, episodes=40 * 64, batch_size=64, learning_rate=3e-4,
            kl_coefficient=0.01,
        ),
    )  # fmt: skip
    for seed in range(3):
        out = tmp_path / str(seed)
        rlhf("run", path, "--out", out, "--set", f"seed={seed}", cwd=tmp_path)
        lines = (out / "ppo" / "metrics.jsonl").read_text().splitlines()
        scores = [json.loads(line)["objective/scores"] for line in lines]
        print(architecture, value, seed, scores)
        # A third of the demonstrations say hello, and so does the policy that imitates them.
        assert 0.1 < scores[0] < 0.6, scores
        assert sum(scores[-5:]) / 5 > scores[0] + 0.3, scores
