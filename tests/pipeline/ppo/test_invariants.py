from __future__ import annotations

import math

import pytest

from data.errors import TrainingError
from pipeline.ppo.invariants import (
    check_equal_ranks,
    check_first_step,
    check_reference,
    check_rollout,
)


def test_what_holds_passes() -> None:
    check_equal_ranks([4, 4])
    check_reference(1e-6, bf16=False)
    check_rollout(1e-6, bf16=False)
    check_rollout(1e-2, bf16=True)
    check_first_step(ratio=1.00001, approximate_kl=1e-9, value_loss=3.0, bf16=False)


def test_what_fails_names_the_likely_cause() -> None:
    with pytest.raises(TrainingError, match="have 4, 3 episodes"):
        check_equal_ranks([4, 3])
    with pytest.raises(
        TrainingError, match=r"differs from its reference by 0.2 .*another checkpoint"
    ):
        check_reference(0.2, bf16=False)
    with pytest.raises(TrainingError, match="older weights"):
        check_rollout(1e-2, bf16=False)
    with pytest.raises(TrainingError, match="value loss of the first minibatch is nan"):
        check_first_step(ratio=1.0, approximate_kl=0.0, value_loss=math.nan, bf16=False)
    with pytest.raises(TrainingError, match=r"ratio at the first minibatch is 1.1 .*dropout"):
        check_first_step(ratio=1.1, approximate_kl=0.0, value_loss=1.0, bf16=False)


def test_nan_never_passes() -> None:
    for call in (
        lambda: check_reference(math.nan, bf16=False),
        lambda: check_rollout(math.nan, bf16=False),
        lambda: check_first_step(ratio=math.nan, approximate_kl=0.0, value_loss=1.0, bf16=False),
    ):
        with pytest.raises(TrainingError):
            call()
