"""PPO on one trunk: the reward model as an adapter, and values read off it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import Interrupted, ModelError
from pipeline.stages.ppo.stage import run
from reward.learned.model import RewardModel

Build = Callable[..., Any]
ONE = {"trunk": "shared", "sample_every": 1, "sample_count": 8, "end_rule": "none"}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / name / "model.safetensors")


def test_one_trunk_carries_the_reward_model_that_was_trained_on_it(
    setting: Build, publish_adapter: Build, tmp_path: Path
) -> None:
    reward = publish_adapter(setting().settings.policy)
    attached = setting("attached-run", reward=reward, **ONE)
    metrics = run(attached)
    model = RewardModel.load(reward, device="cpu")
    for sample in rows(attached.folder / "samples.jsonl")[:8]:
        ended = [sample["ended"]]
        (score,) = model.score([sample["prompt"]], [sample["response"]], ended=ended)
        assert sample["score"] == pytest.approx(score, abs=1e-4)
    assert (attached.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert metrics["objective/kl"] != 0


def test_an_adapter_of_another_trunk_is_refused(
    setting: Build, publish_adapter: Build, tmp_path: Path
) -> None:
    reward = publish_adapter(str(tmp_path / "rm"), name="strange", strange=True)
    with pytest.raises(ModelError, match="was trained on a trunk with sha256"):
        run(setting("other", reward=reward, **ONE))


def test_values_start_at_nothing_and_are_read_off_the_reward_models_states(
    setting: Build, publish_adapter: Build
) -> None:
    from transformers import AutoModelForTokenClassification

    reward = publish_adapter(setting().settings.policy)
    judge = RewardModel.load(reward, device="cpu")
    ids = torch.tensor([[60, 61, 62, 63, 64]])
    with torch.no_grad():
        states = judge.module.classifier.base_model(ids).last_hidden_state[0]
    found = {}
    # A learning rate of almost nothing leaves the head as it started.
    for name, rate in (("still", 1e-12), ("learnt", 3e-2)):
        context = setting(
            name, reward=reward, value="reward", value_learning_rate=rate, episodes=8, **ONE
        )
        run(context)
        folder = context.folder / "value_model"
        value = AutoModelForTokenClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            found[name] = value(ids).logits[0, :, 0]
            expected = value.score(states)[:, 0]
        assert torch.allclose(found[name], expected, atol=1e-4)
    assert float(found["still"].abs().max()) < 1e-6
    assert float(found["learnt"].abs().max()) > 1e-2


def test_the_head_learns_and_an_interrupted_run_ends_alike(
    setting: Build, publish_adapter: Build
) -> None:
    reward = publish_adapter(setting().settings.policy)
    more = {
        "reward": reward,
        "value": "reward",
        "value_warmup_updates": 1,
        "value_learning_rate": 3e-2,
        "value_clip": None,
        "ema_decay": 0.9,
        **ONE,
    }
    whole = setting("whole", episodes=64, **more)
    run(whole)
    logged = rows(whole.folder / "metrics.jsonl")
    losses = [row["loss/value_avg"] for row in logged]
    assert sum(losses[-2:]) < sum(losses[:2])
    for stop_after in (0, 2):
        with pytest.raises(Interrupted):
            run(setting("cut", episodes=64, stop_after=stop_after, **more))
    cut = setting("cut", episodes=64, **more)
    run(cut)
    for name in ("model", "value_model"):
        ours, theirs = weights(cut.folder, name), weights(whole.folder, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_values_can_only_be_read_off_an_adapter(setting: Build) -> None:
    with pytest.raises(ModelError, match="value: reward reads values off the adapter"):
        run(setting(value="reward", **ONE))
    with pytest.raises(ValueError, match="on trunk: shared; set that"):
        setting(value="reward")
