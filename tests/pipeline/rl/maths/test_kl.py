from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rl.maths.kl import adapted_coefficient, kl_estimate


def test_estimates_by_hand() -> None:
    logprobs, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])

    def estimate(name: str) -> list[float]:
        return kl_estimate(
            logprobs_BT=logprobs,
            reference_BT=reference,
            estimator=name,  # type: ignore[arg-type]
        )[0].tolist()

    assert estimate("k1") == pytest.approx([0.5, -1.0])
    assert estimate("k2") == pytest.approx([0.125, 0.5])
    assert estimate("k3") == pytest.approx([math.exp(-0.5) - 0.5, math.e - 2])


def test_k1_and_k3_have_the_kl_as_their_mean() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum()
    for name in ("k1", "k3"):
        each = kl_estimate(logprobs_BT=p.log(), reference_BT=q.log(), estimator=name)
        assert (p * each).sum().item() == pytest.approx(exact.item(), abs=1e-6)


@given(st.floats(-8, 0), st.floats(-8, 0))
def test_k2_and_k3_are_never_negative(a: float, b: float) -> None:
    for name in ("k2", "k3"):
        value = kl_estimate(
            logprobs_BT=torch.tensor([[a]], dtype=torch.float64),
            reference_BT=torch.tensor([[b]], dtype=torch.float64),
            estimator=name,
        )
        assert value.item() >= 0


def test_the_coefficient_moves_towards_the_target_by_hand() -> None:
    settings = {"target": 6.0, "horizon": 10_000.0, "episodes": 500}
    # 20 % at most, times 500 / 10,000
    assert adapted_coefficient(0.1, kl=60.0, **settings) == pytest.approx(0.101)  # type: ignore[arg-type]
    assert adapted_coefficient(0.1, kl=0.0, **settings) == pytest.approx(0.099)  # type: ignore[arg-type]
    assert adapted_coefficient(0.1, kl=6.6, **settings) == pytest.approx(0.1005)  # type: ignore[arg-type]
    assert adapted_coefficient(0.1, kl=6.0, **settings) == 0.1  # type: ignore[arg-type]
