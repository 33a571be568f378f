"""The learning rate of the last step of every stage, as its optimiser took it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipeline.stages.ppo.stage import run as run_ppo
from pipeline.stages.pretrain import stage as pretrain
from pipeline.stages.pretrain.settings import PretrainSettings
from pipeline.stages.reward import stage as reward
from pipeline.stages.reward.settings import RewardSettings
from pipeline.stages.sft import stage as sft

PEAK = 1e-3
SCHEDULES = pytest.mark.parametrize(
    ("schedule", "last"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)]
)


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """The learning rate of every step of any optimiser, as a share of the peak."""
    found: list[float] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        found.append(optimizer.param_groups[0]["lr"] / PEAK)

    handle = register_optimizer_step_post_hook(keep)
    yield found
    handle.remove()


@SCHEDULES
def test_pretraining_ends_at_the_final_share(
    schedule: str, last: float, rates: list[float], make_context: Any, policy: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"The mill {i}. " * 9}) + "\n" for i in range(9)))
    shape = {"hidden_size": 16, "layers": 1, "heads": 2, "context_length": 32, "batch_size": 2}
    settings = PretrainSettings(
        tokenizer=str(policy), train=[{"path": str(corpus)}], steps=5, learning_rate=PEAK,
        schedule=schedule, final_share=0.1, save_every=0, **shape,
    )  # fmt: skip
    pretrain.run(make_context(settings, {"tokenizer": policy}))
    assert len(rates) == 5 and max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(last)


@SCHEDULES
def test_fine_tuning_ends_at_the_final_share(
    schedule: str, last: float, rates: list[float], make_context: Any, policy: Path,
    sft_settings: Any,
) -> None:  # fmt: skip
    settings = sft_settings(
        policy, max_steps=5, learning_rate=PEAK, schedule=schedule, final_share=0.1, save_every=0
    )
    sft.run(make_context(settings, {"model": policy}))
    assert len(rates) == 5 and max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(last)


@SCHEDULES
def test_a_reward_model_ends_at_the_final_share(
    schedule: str, last: float, rates: list[float], make_context: Any, policy: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"say {i}", "chosen": "good", "rejected": "bad"} for i in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RewardSettings(
        model=str(policy), train=[{"path": str(path)}], heldout_share=0.2, prompts_per_step=2,
        learning_rate=PEAK, schedule=schedule, final_share=0.1, evaluate_every=0, save_every=0,
    )  # fmt: skip
    metrics = reward.run(make_context(settings, {"model": policy}))
    assert len(rates) == metrics["steps"] > 4 and max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(last)


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.25), ("constant", 1.0)])
def test_ppo_is_linear_to_0_one_update_after_its_last(
    schedule: str, last: float, rates: list[float], setting: Callable[..., Any]
) -> None:
    """As in Huang et al. 2024: of 4 updates the first is at the whole rate, the last at 1/4."""
    run_ppo(setting(learning_rate=PEAK, schedule=schedule, epochs=1, minibatches=1))
    assert max(rates) == rates[0] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(last)
