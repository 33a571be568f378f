from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rl.maths import losses
from pipeline.rl.maths.losses import language_loss, policy_loss, token_scores, value_loss
from pipeline.rl.maths.masking import length_mask


def batch(seed: int, count: int = 6, size: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, size + 1, (count,), generator=generator)
    drawn = torch.randn(4, count, size, generator=generator, dtype=torch.float64)
    return {
        "new": drawn[0] - 2,
        "old": drawn[0] - 2 + 0.3 * drawn[1],
        "advantages": drawn[2],
        "returns": drawn[3],
        "mask": length_mask(lengths_B=lengths, size=size),
    }


def surrogate(rows: dict[str, torch.Tensor], count: Any) -> Any:
    return policy_loss(
        logprobs_BT=rows["new"],
        old_logprobs_BT=rows["old"],
        advantages_BT=rows["advantages"],
        mask_BT=rows["mask"],
        clip=0.2,
        count=count,
    )


def test_policy_loss_by_hand() -> None:
    ratios = torch.tensor([[1.0, 1.5, 1.5, 0.5, 0.5, 7.0]])
    found = policy_loss(
        logprobs_BT=ratios.log(),
        old_logprobs_BT=torch.zeros(1, 6),
        advantages_BT=torch.tensor([[2.0, 1.0, -1.0, 1.0, -1.0, 9.0]]),
        mask_BT=torch.tensor([[True] * 5 + [False]]),
        clip=0.2,
        count=5,
    )
    # clipped at 1.2 when it gains, never when it loses; -0.8 * -1 = 0.8 when it loses less
    assert found.loss.item() == pytest.approx((-2 - 1.2 + 1.5 - 0.5 + 0.8) / 5)
    assert found.clip_share.item() == pytest.approx(2 / 5)
    assert found.ratio.item() == pytest.approx(1.0)
    squares = 2 * math.log(1.5) ** 2 + 2 * math.log(0.5) ** 2
    assert found.approximate_kl.item() == pytest.approx(0.5 * squares / 5)


@given(st.integers(0, 500))
def test_ratio_1_gives_minus_the_mean_advantage_and_the_policy_gradient(seed: int) -> None:
    rows = batch(seed)
    rows["old"] = rows["new"]
    rows["new"] = rows["new"].clone().requires_grad_()
    count = int(rows["mask"].sum())
    found = surrogate(rows, count)
    assert found.loss.item() == pytest.approx(-rows["advantages"][rows["mask"]].mean().item())
    assert found.ratio.item() == pytest.approx(1.0) and found.clip_share.item() == 0
    found.loss.backward()
    expected = torch.where(rows["mask"], -rows["advantages"] / count, 0.0)
    grad = rows["new"].grad
    assert grad is not None and torch.allclose(grad, expected)


@given(st.integers(0, 500), st.integers(1, 6))
def test_micro_batches_change_neither_loss_nor_gradient(seed: int, size: int) -> None:
    rows = batch(seed)
    count = int(rows["mask"].sum())
    gradients, losses = [], []
    for step in (6, size):
        leaf = rows["new"].clone().requires_grad_()
        total = 0.0
        for start in range(0, 6, step):
            part = {name: t[start : start + step] for name, t in {**rows, "new": leaf}.items()}
            loss = surrogate(part, count).loss
            loss = (
                loss
                + value_loss(
                    values_BT=part["new"],
                    old_values_BT=part["old"],
                    returns_BT=part["returns"],
                    mask_BT=part["mask"],
                    clip=0.2,
                    count=count,
                ).loss
            )
            loss = loss + language_loss(logprobs_BT=part["new"], mask_BT=part["mask"], count=count)
            loss.backward()
            total += loss.item()
        gradients.append(leaf.grad)
        losses.append(total)
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)  # type: ignore[arg-type]


def test_padding_may_hold_anything_and_gets_no_gradient() -> None:
    rows = batch(1)
    count = int(rows["mask"].sum())
    clean = surrogate(rows, count).loss
    dirty = torch.where(rows["mask"], rows["new"], 1e30).requires_grad_()
    found = surrogate({**rows, "new": dirty}, count).loss
    assert found.item() == clean.item()
    found.backward()
    assert dirty.grad is not None and not dirty.grad[~rows["mask"]].any()
    assert dirty.grad.isfinite().all()


def test_value_loss_by_hand() -> None:
    found = value_loss(
        values_BT=torch.tensor([[1.0, 0.1, 3.0]]),
        old_values_BT=torch.tensor([[0.0, 0.0, 0.0]]),
        returns_BT=torch.tensor([[2.0, 1.0, 9.0]]),
        mask_BT=torch.tensor([[True, True, False]]),
        clip=0.2,
        count=2,
    )
    # max((1 - 2)^2, (0.2 - 2)^2) = 3.24; 0.1 is within the clip: 0.81
    assert found.loss.item() == pytest.approx(0.5 * (3.24 + 0.81) / 2)
    assert found.clip_share.item() == pytest.approx(0.5)


def test_value_loss_without_a_clip_by_hand() -> None:
    values = torch.tensor([[1.0, 0.0]])
    arguments = {"old_values_BT": values * 0, "returns_BT": torch.tensor([[3.0, 0.0]])}
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = value_loss(values_BT=values, mask_BT=mask, clip=None, count=2, **arguments)
    assert found.loss.item() == pytest.approx(0.5 * 4 / 2) and found.clip_share.item() == 0


def test_token_scores_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    found = token_scores(
        logits_NV=logits, tokens_N=torch.tensor([1, 0]), temperature=0.5, entropy=True
    )
    # temperature 0.5 squares the odds: 9 to 1
    assert found.logprobs_N.tolist() == pytest.approx([math.log(0.9), math.log(0.5)])
    spread = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert found.entropies_N.tolist() == pytest.approx([spread, math.log(2)])
    bare = token_scores(
        logits_NV=logits, tokens_N=torch.tensor([1, 0]), temperature=0.5, entropy=False
    )
    assert torch.allclose(bare.logprobs_N, found.logprobs_N) and not bare.entropies_N.any()


def test_language_loss_by_hand() -> None:
    loss = language_loss(
        logprobs_BT=torch.tensor([[-1.0, -3.0, -9.0]]),
        mask_BT=torch.tensor([[True, True, False]]),
        count=4,
    )
    assert loss.item() == 1.0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_of_token_scores_are_those_of_log_softmax(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "LOGITS_IN_CACHE", 3 * 11)  # three rows at a time, and one left
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(10, 11, generator=generator)).requires_grad_()
    tokens = torch.randint(0, 11, (10,), generator=generator)
    weights = torch.randn(10, generator=generator)
    plain = (logits / temperature).log_softmax(-1)[torch.arange(10), tokens]
    (expected,) = torch.autograd.grad((weights * plain.exp()).sum(), logits)
    scored = token_scores(
        logits_NV=logits, tokens_N=tokens, temperature=temperature, entropy=False
    ).logprobs_N
    torch.testing.assert_close(scored, plain, atol=1e-6, rtol=1e-6)
    before = logits.detach().clone()
    (found,) = torch.autograd.grad((weights * scored.exp()).sum(), logits)
    assert torch.equal(logits, before)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_gradients_of_bf16_logits_are_as_near_as_bf16_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = (4 * torch.randn(6, 50, generator=generator)).bfloat16().float().requires_grad_()
    rounded = exact.detach().bfloat16().requires_grad_()
    tokens = torch.randint(0, 50, (6,), generator=generator)

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        scored = token_scores(logits_NV=logits, tokens_N=tokens, temperature=0.9, entropy=False)
        return torch.autograd.grad(scored.logprobs_N.sum(), logits)[0].float()

    found = gradient(rounded)
    torch.testing.assert_close(found, gradient(exact), atol=0, rtol=2**-8)
