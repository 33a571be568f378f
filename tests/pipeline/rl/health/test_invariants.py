from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from data.errors import TrainingError
from pipeline.rl.health.invariants import (
    check_first_step,
    check_reference,
    check_rollout,
)
from pipeline.rl.ppo.experience import make_experience
from pipeline.rl.ppo.loop import run_update


def test_what_holds_passes() -> None:
    check_reference(1e-6, bf16=False)
    check_rollout(1e-6, bf16=False)
    check_rollout(1e-2, bf16=True)
    check_first_step(ratio=1.00001, approximate_kl=1e-9, value_loss=3.0, bf16=False)


def test_what_fails_names_the_likely_cause() -> None:
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


def shifted(experience: Any) -> Any:
    """Return an experience whose old log-probabilities are not the policy's: ratio e^0.1."""
    return replace(experience, logprobs_BT=experience.logprobs_BT - 0.1)


def test_optimising_from_another_policys_log_probabilities_stops_at_the_first_step(
    make_ppo: Callable[..., Any], experience_of: Callable[..., Any]
) -> None:
    ppo = make_ppo()
    stale = shifted(experience_of(ppo))
    with pytest.raises(TrainingError, match=r"ratio at the first minibatch is 1\.1051"):
        ppo.optimization.run(stale, update=0, check=True)
    assert ppo.optimization.run(stale, update=0, check=False).steps[0].ratio > 1.1


def test_a_run_checks_the_ratio_at_its_first_update_alone(
    make_ppo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.rl.ppo.loop as loop

    ppo, late = make_ppo(), make_ppo(episodes=16)
    run_update(late)
    monkeypatch.setattr(loop, "make_experience", lambda *a, **k: shifted(make_experience(*a, **k)))
    with pytest.raises(TrainingError, match="ratio at the first minibatch"):
        run_update(ppo)
    assert run_update(late).metrics["val/ratio"] > 1.1
