"""What must hold at the first minibatch; when something does not, the run stops and says why.

The probability ratio is 1, since nothing has been trained since the roll-out; the KL to the
reference is 0, since the policy starts from it; the value loss is finite.
"""

from __future__ import annotations

import math

from data.errors import TrainingError

TOLERANCE = 1e-3
"""Of log-probabilities in fp32."""
TOLERANCE_BF16 = 5e-2
"""Of log-probabilities in bf16."""


def check_reference(kl: float, *, bf16: bool) -> None:
    """Refuse a policy that differs from the reference it starts from.

    Args:
        kl: mean absolute log ratio of policy and reference at the first update.
        bf16: whether products are in bf16.

    Raises:
        TrainingError: with the likely causes.
    """
    tolerance = TOLERANCE_BF16 if bf16 else TOLERANCE
    if not kl <= tolerance:
        raise TrainingError(
            f"before the first update the policy differs from its reference by {kl:.3g} nats a "
            f"token (at most {tolerance} expected); likely causes: the reference is another "
            "checkpoint than the policy's start (name it as `reference` if that is meant), or a "
            "model computes differently each time (dropout, a router's noise)"
        )


def check_rollout(difference: float, *, bf16: bool, most: float | None = None) -> None:
    """Refuse a roll-out whose log-probabilities are not those of the policy.

    Args:
        difference: mean absolute difference of the roll-out's and the policy's log-probabilities
            of the same tokens.
        bf16: whether products are in bf16.
        most: the largest difference that is let pass, where a server samples with other kernels.

    Raises:
        TrainingError: with the likely causes.
    """
    tolerance = most or (TOLERANCE_BF16 if bf16 else TOLERANCE)
    if difference <= tolerance:
        return
    message = (
        f"the roll-out's log-probabilities differ from the policy's by {difference:.3g} nats a "
        f"token (at most {tolerance} expected); likely causes: the roll-out has older weights "
        "or another temperature, "
    )
    if most is None:
        raise TrainingError(message + "the model has dropout, or its attention sees the padding")
    raise TrainingError(
        message + "the server holds another model, another run writes its weights into it, or it "
        "counts in half precision (rollout.max_difference sets the limit)"
    )


def check_first_step(*, ratio: float, approximate_kl: float, value_loss: float, bf16: bool) -> None:
    """Refuse a first optimiser step whose ratio is not 1 or whose value loss is not finite.

    Args:
        ratio: mean probability ratio.
        approximate_kl: mean of half the squared log ratio.
        value_loss: of the same minibatch.
        bf16: whether products are in bf16.

    Raises:
        TrainingError: with the likely cause.
    """
    tolerance = TOLERANCE_BF16 if bf16 else TOLERANCE
    if not math.isfinite(value_loss):
        raise TrainingError(
            f"the value loss of the first minibatch is {value_loss}; likely cause: the value "
            "model's head was never trained or its weights hold NaN, look at the reward model"
        )
    if not (abs(ratio - 1.0) <= tolerance and approximate_kl <= tolerance):
        raise TrainingError(
            f"the probability ratio at the first minibatch is {ratio:.6g} (mean; half the squared "
            f"log ratio {approximate_kl:.3g}), it must be 1 since nothing was trained yet; likely "
            "causes: dropout, another temperature in roll-out and update, or weights that differ "
            "between the passes"
        )
