"""The KL divergence of the policy from its reference: estimators and the adaptive coefficient.

What an estimator is good for depends on where it goes. Its mean over sampled tokens tells the KL;
as a penalty in a reward, which gives no gradient of itself, it has to be the log ratio (k1): the
policy gradient of the expected sum of the log ratios is the gradient of the KL. That of k2's or
k3's sum is another function's: k3 in the reward pulls the policy to where reference over policy is
small, far from the optimum of E[score] - coefficient * KL.

Shapes: B episodes, T response tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(*, logprobs_BT: Tensor, reference_BT: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(policy || reference) in nats at each token that the policy sampled.

    Source: Schulman, "Approximating KL divergence", 2020.
    """
    difference_BT = logprobs_BT - reference_BT  # d = log policy - log reference [B, T]
    if estimator == "k1":  # its mean is the KL, a token's may be negative
        return difference_BT
    if estimator == "k2":  # its mean is near the KL where the two are near, never negative
        return 0.5 * difference_BT.square()
    # k3 = exp(-d) - 1 + d: never negative; its mean is the KL where the reference has no token that
    # the policy never samples (top-k, top-p). A token's is without bound where the policy samples
    # what it finds much less likely than the reference.
    return torch.expm1(-difference_BT) + difference_BT


def adapted_coefficient(
    coefficient: float, *, kl: float, target: float, horizon: float, episodes: int
) -> float:
    """Return the KL coefficient after a batch of `episodes` (Ziegler et al. 2019, section 2.2).

    `kl`, the mean of the batch, and the `target` are in nats a response, the horizon in episodes.
    """
    # The paper has a gain of 0.1 at batches of 1,024; its code has a horizon as here, of 10,000.
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)
