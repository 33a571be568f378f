"""The KL divergence of the policy from its reference: estimators and the adaptive coefficient.

Shapes: B episodes, T response tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(*, logprobs_BT: Tensor, reference_BT: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(policy || reference) at each token that the policy sampled.

    With d = log policy - log reference (Schulman, "Approximating KL divergence", 2020):

    - k1 = d: unbiased, may be negative;
    - k2 = d^2 / 2: biased, never negative;
    - k3 = exp(-d) - 1 + d: unbiased, never negative.

    Args:
        logprobs_BT: log-probabilities under the policy that sampled the tokens.
        reference_BT: log-probabilities of the same tokens under the reference.
        estimator: k1, k2 or k3.
    """
    difference_BT = logprobs_BT - reference_BT
    if estimator == "k1":
        return difference_BT
    if estimator == "k2":
        return 0.5 * difference_BT.square()
    return torch.expm1(-difference_BT) + difference_BT


def adapted_coefficient(
    coefficient: float, *, kl: float, target: float, horizon: float, episodes: int
) -> float:
    """Return the KL coefficient after a batch (Ziegler et al. 2019, section 2.2).

    coefficient * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon); the paper has a
    gain of 0.1 at batches of 1,024, its code divides by a horizon of 10,000 episodes as here.

    Args:
        coefficient: the one of the batch.
        kl: mean KL of the batch's episodes, in nats a response.
        target: KL to steer to, in nats a response.
        horizon: episodes.
        episodes: size of the global batch.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)
