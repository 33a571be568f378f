"""What the settings of the losses do to the figures and gradients of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.rl.ppo.loop import run_update

Build = Callable[..., Any]
ALL = list(range(8))


def gradients(learner: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def entropy_gradient(ppo: Any, learned: Any, rows: list[int]) -> torch.Tensor:
    """Return the gradient of the mean entropy of the distributions that tokens were drawn from."""
    model, drawn = ppo.policy.model, []
    for row in rows:
        start, ids = int(learned.tokens.starts_B[row]), torch.tensor([learned.tokens.ids[row]])
        logits = model(ids).logits[0, start - 1 : -1] / ppo.hyper.temperature
        drawn.append(torch.distributions.Categorical(logits=logits).entropy())
    ppo.policy.zero_grad()
    torch.cat(drawn).mean().backward()
    return gradients(ppo.optimization.policy)


def test_the_entropy_bonus_takes_its_gradient_off_that_of_the_loss(
    make_ppo: Build, experience_of: Build
) -> None:
    found = {}
    for coefficient in (0.0, 0.3):
        ppo = make_ppo(entropy_coefficient=coefficient, temperature=0.7, micro_batch_size=3)
        with torch.no_grad():  # far from uniform, where the entropy has a gradient
            ppo.policy.model.lm_head.weight.mul_(20)
        learned = experience_of(ppo)
        ppo.optimization._minibatch_gradient(learned, ALL, warming=False)
        found[coefficient] = gradients(ppo.optimization.policy)
    bonus = 0.3 * entropy_gradient(ppo, learned, ALL)
    assert bonus.norm() > 1e-2
    assert torch.allclose(found[0.3] - found[0.0], -bonus, atol=1e-6)


def moved(learned: Any, *, ratio: float = 1.0, **figures: float) -> Any:
    """Return an experience from whose policy the present one has moved by a ratio.

    `figures` replace whole tensors by one number.
    """
    mask_BT = learned.tokens.mask_BT
    return replace(
        learned,
        logprobs_BT=learned.logprobs_BT - math.log(ratio),
        **{name: torch.where(mask_BT, value, 0.0) for name, value in figures.items()},
    )


@pytest.mark.parametrize(
    ("clip", "loss", "share"),
    [(0.2, -1.2, 1.0), (0.4, -1.4, 1.0), (0.6, -1.5, 0.0)],
)
def test_the_ratio_counts_as_far_as_clip_lets_it(
    make_ppo: Build, experience_of: Build, clip: float, loss: float, share: float
) -> None:
    # Ratio 1.5 and advantage 1 at every token: -min(1.5, 1 + clip).
    ppo = make_ppo(clip=clip)
    learned = moved(experience_of(ppo), ratio=1.5, advantages_BT=1.0)
    step = ppo.optimization._minibatch_gradient(learned, ALL, warming=False)
    assert step.policy_loss == pytest.approx(loss, abs=1e-4)
    assert step.clip_share == share
    assert (gradients(ppo.optimization.policy).norm() > 1e-4) == (share == 0.0)


@pytest.mark.parametrize(
    ("clip", "loss", "share"),
    [(0.2, 0.32, 1.0), (0.6, 0.08, 1.0), (2.0, 0.0, 0.0), (None, 0.0, 0.0)],
)
def test_a_value_moves_as_far_as_value_clip_lets_it(
    make_ppo: Build, experience_of: Build, clip: float | None, loss: float, share: float
) -> None:
    # A new head says 0, which is the return, and the old value was 1: half of (1 - clip) squared.
    ppo = make_ppo(value_clip=clip)
    learned = moved(experience_of(ppo), values_BT=1.0, returns_BT=0.0)
    step = ppo.optimization._minibatch_gradient(learned, ALL, warming=False)
    assert step.value_loss == pytest.approx(loss, abs=1e-6)
    assert step.value_clip_share == share


@pytest.mark.parametrize("coefficient", [0.1, 0.5])
def test_the_value_coefficient_weighs_the_gradient_of_the_values(
    make_ppo: Build, experience_of: Build, coefficient: float
) -> None:
    # All values are 0 and all returns 2; half the square has the gradient 0 - 2 by the bias.
    ppo = make_ppo(value_coefficient=coefficient, value_clip=None)
    learned = moved(experience_of(ppo), returns_BT=2.0)
    step = ppo.optimization._minibatch_gradient(learned, ALL, warming=False)
    head = ppo.optimization.value.module.model.score
    assert head.bias.grad.item() == pytest.approx(-2.0 * coefficient)
    assert step.value_loss == pytest.approx(2.0)  # told without its weight


def momentum(learner: Any) -> float:
    """Return the norm of Adam's first moments over all parameters."""
    states = [learner.optimizer.state[p]["exp_avg"] for p in learner.parameters()]
    return float(torch.cat([state.flatten() for state in states]).norm())


def test_each_models_gradient_is_clipped_to_the_largest_norm(make_ppo: Build) -> None:
    # After one step the first moments are a tenth (1 - beta 0.9) of the gradient that was taken.
    for limit in (None, 1e-3):
        ppo = make_ppo(max_gradient_norm=limit)
        metrics = run_update(ppo).metrics
        for name in ("policy", "value"):
            norm = metrics[f"gradient_norm/{name}"]
            assert norm > 1e-2  # told as it was before
            taken = norm if limit is None else limit
            assert momentum(getattr(ppo.optimization, name)) == pytest.approx(taken / 10, rel=2e-3)
