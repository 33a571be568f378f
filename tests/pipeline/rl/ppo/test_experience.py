"""What the settings make of two episodes, worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.rl.ppo.experience import Experience, PolicyScores, Tokens, make_experience
from pipeline.rl.processes import World
from pipeline.rl.settings import Hyperparameters


def experience(**settings: Any) -> Experience:
    """Shape two tokens that score 1 and one token that scores 3, at a KL coefficient of 0.1.

    The log ratios to the reference are 1/2 and -1, and 0; the values 1/2 and 1/4, and 1.
    """
    mask_BT = torch.tensor([[True, True], [True, False]])
    tokens = Tokens(
        ids=[[7, 8, 9], [7, 8]],
        starts_B=torch.tensor([1, 1]),
        mask_BT=mask_BT,
        value_mask_BT=mask_BT,
        pad_id=0,
        device=mask_BT.device,
    )
    scored = PolicyScores(
        logprobs_BT=torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]),
        entropies_BT=torch.zeros(2, 2),
        reference_BT=torch.tensor([[-1.5, -1.0], [-1.0, 0.0]]),
        values_BT=torch.tensor([[0.5, 0.25], [1.0, 0.0]]),
        difference=0.0,
    )
    plain = {"gamma": 1.0, "gae_lambda": 1.0, "whiten_advantages": False}
    return make_experience(
        tokens,
        scored,
        scores_B=torch.tensor([1.0, 3.0]),
        kl_coefficient=0.1,
        hyper=Hyperparameters(**{**plain, **settings}),
        world=World(SimpleNamespace(num_processes=1), 0),
    )


def test_the_log_ratio_makes_the_penalties() -> None:
    found = experience()
    assert torch.allclose(found.rewards_BT, torch.tensor([[-0.05, 1.1], [3.0, 0.0]]), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        # Rewards -0.05 and 1.1, so that the second token's advantage is 1.1 - 0.25 = 0.85 ...
        ({}, -0.05 + 0.25 - 0.5 + 0.85),
        ({"gamma": 0.5}, -0.05 + 0.5 * 0.25 - 0.5 + 0.5 * 0.85),
        ({"gae_lambda": 0.2}, -0.05 + 0.25 - 0.5 + 0.2 * 0.85),
        ({"gamma": 0.5, "gae_lambda": 0.2}, -0.05 + 0.5 * 0.25 - 0.5 + 0.5 * 0.2 * 0.85),
    ],
)
def test_gamma_and_lambda_discount_what_comes_later(
    settings: dict[str, float], first: float
) -> None:
    found = experience(**settings)
    # ... and the other episode's 3 - 1.
    expected = torch.tensor([[first, 0.85], [2.0, 0.0]])
    assert torch.allclose(found.advantages_BT, expected, atol=1e-6)
    values_BT = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
    assert torch.allclose(found.returns_BT, expected + values_BT, atol=1e-6)


def test_whitened_rewards_keep_their_mean() -> None:
    # Rewards -0.05, 1.1 and 3: mean 1.35, variance (1.4^2 + 0.25^2 + 1.65^2) / 2 = 2.3725.
    found = experience(whiten_rewards=True)
    a, b, c = (1.35 + off / math.sqrt(2.3725) for off in (-1.4, -0.25, 1.65))
    expected = torch.tensor([[a + b, b], [c, 0.0]])  # returns, where nothing is discounted
    assert torch.allclose(found.returns_BT, expected, atol=1e-6)
    plain = torch.tensor([[-0.05, 1.1], [3.0, 0.0]])
    assert torch.allclose(found.rewards_BT, plain)  # told as they were before


@pytest.mark.parametrize("setting", [True, "minibatch", False])
def test_advantages_are_whitened_here_unless_it_is_done_later_or_never(
    setting: bool | str,
) -> None:
    # Advantages 0.55, 0.85 and 2: mean 17/15, spread (35^2 + 17^2 + 52^2) / 60^2 = 4218 / 3600.
    found = experience(whiten_advantages=setting)
    expected = torch.tensor([[0.55, 0.85], [2.0, 0.0]])
    if setting is True:
        expected = (expected - 17 / 15) / math.sqrt(4218 / 3600 / 2)
        expected[1, 1] = 0.0  # padding
    assert torch.allclose(found.advantages_BT, expected, atol=1e-6)
    returns = torch.tensor([[1.05, 1.1], [3.0, 0.0]])
    assert torch.allclose(found.returns_BT, returns, atol=1e-6)
