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
    """Estimate KL(policy || reference) at each token that the policy sampled.

    With d = log policy - log reference (Schulman, "Approximating KL divergence", 2020), as figures:

    - k1 = d: its mean is the KL, a token's may be negative;
    - k2 = d^2 / 2: its mean is near the KL where the two are near, never negative;
    - k3 = exp(-d) - 1 + d: its mean is the KL where the reference has no token that the policy
      never samples (top-k, top-p); never negative, and without bound where the policy samples what
      it finds much less likely than the reference.

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
