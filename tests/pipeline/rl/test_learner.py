from __future__ import annotations

import math

import pytest
import torch

from pipeline.rl.learner import Learner
from pipeline.rl.processes import World, make_accelerator
from pipeline.rl.settings import Hyperparameters


def test_two_steps_of_adam_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    learner = Learner.of(
        module,
        learning_rate=0.3,
        hyper=Hyperparameters(adam_betas=(0.5, 0.75), adam_epsilon=1.0),
        world=World(make_accelerator(bf16=False), 0),
    )
    weight = learner.parameters()[0]
    weight.grad = torch.tensor([[2.0]])
    norm = learner.gradient_norm()
    assert norm == 2.0
    learner.step(norm=norm, share=1.0, max_norm=None)
    # First moment 2, second 4, each without its bias: 0.3 * 2 / (2 + 1) downwards.
    assert weight.item() == pytest.approx(-0.2)
    weight.grad = torch.tensor([[4.0]])
    learner.step(norm=learner.gradient_norm(), share=1.0, max_norm=None)
    # First moment (0.5 * 1 + 0.5 * 4) / (1 - 0.5^2) = 10/3;
    # second (0.75 * 1 + 0.25 * 16) / (1 - 0.75^2) = 76/7.
    assert weight.item() == pytest.approx(-0.2 - 0.3 * (10 / 3) / (math.sqrt(76 / 7) + 1))
