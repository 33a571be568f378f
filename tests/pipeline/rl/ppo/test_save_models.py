from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.rl.ppo.loop import run_update
from pipeline.rl.ppo.save_models import save_models

Weights = dict[str, torch.Tensor]


def weights(ppo: Any) -> Weights:
    return {name: p.detach().clone() for name, p in ppo.policy.model.named_parameters()}


def trained(ppo: Any, folder: Path) -> tuple[list[Weights], Weights]:
    """Return the weights before and after each of two steps, and those that are published."""
    states = [weights(ppo)]
    for _ in range(2):
        run_update(ppo)
        states.append(weights(ppo))
    save_models(ppo, folder)
    return states, load_file(folder / "model" / "model.safetensors")


def largest(states: Weights, others: Weights) -> float:
    assert states.keys() == others.keys()
    return max(float((states[name] - others[name]).abs().max()) for name in states)


def test_the_average_of_the_policy_is_published(
    make_ppo: Callable[..., Any], tmp_path: Path
) -> None:
    ppo = make_ppo(episodes=16, ema_decay=0.75)
    (start, first, last), published = trained(ppo, tmp_path / "average")
    # 0.75 * (0.75 * start + 0.25 * first) + 0.25 * last
    average = {name: (9 * start[name] + 3 * first[name] + 4 * last[name]) / 16 for name in start}
    assert largest(published, average) < 1e-6
    assert largest(published, last) > 1e-3


@pytest.mark.parametrize("value", ["separate", "shared"])
def test_without_an_average_the_last_weights_are_published(
    make_ppo: Callable[..., Any], tmp_path: Path, value: str
) -> None:
    (start, _, last), published = trained(make_ppo(episodes=16, value=value), tmp_path / "last")
    assert largest(published, last) == 0.0
    assert largest(published, start) > 1e-3
