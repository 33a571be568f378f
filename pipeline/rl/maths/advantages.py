"""From scores to rewards, advantages and returns.

Shapes: B episodes, T response tokens with padding on the right. Masks are True where the policy
chose a token; between two of these may stand tokens that a tool put there. Value `values_BT[:, t]`
is that of the prompt and the tokens before t, the state in which token t is chosen.

TRL 1.12 differs: it subtracts a penalty from the scores of responses without an end of sequence
(`end_rule="subtract"`; by default a response scores the smaller of score and penalty), and, like
N+ (Huang et al. 2024), it adds the score one position past the last token where there is room
(`score_position="past_last"`; the default is the last token, as in lm-human-preferences). Room has
a response shorter than `max_new_tokens` in N+ and here, in TRL one shorter than its padded batch.
There it has a value of the state after the last token, discounts by one more step, and whitens
rewards over that position too; `masking.value_mask` covers it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.rl.maths.masking import ScorePosition, score_places

EndRule = Literal["min", "replace", "subtract", "none"]


class Advantages(NamedTuple):
    """Advantages and returns, both 0 outside the mask."""

    advantages_BT: Tensor
    returns_BT: Tensor


class Moments(NamedTuple):
    """Count, sum and sum of squares, in float64; those of processes or parts add up."""

    size: Tensor
    total: Tensor
    squares: Tensor


def end_rule(*, scores_B: Tensor, ended_B: Tensor, rule: EndRule, penalty: float) -> Tensor:
    """Score responses without an end of sequence so that never ending cannot pay.

    Args:
        scores_B: scores of the reward model.
        ended_B: whether a response has an end-of-sequence token.
        rule: "min" takes the smaller of score and penalty; "replace" the penalty (Huang et al.
            2024, N+); "subtract" the score minus the penalty's size (TRL); "none" the score.
        penalty: -1 in N+.
    """
    if rule == "none":
        return scores_B
    if rule == "min":
        unfinished_B = scores_B.clamp(max=penalty)
    elif rule == "replace":
        unfinished_B = torch.full_like(scores_B, penalty)
    else:
        unfinished_B = scores_B - abs(penalty)
    return torch.where(ended_B, scores_B, unfinished_B)


def shaped_rewards(
    *,
    scores_B: Tensor,
    kl_BT: Tensor,
    mask_BT: Tensor,
    coefficient: float,
    score_position: ScorePosition = "last",
) -> Tensor:
    """Return the rewards: minus the KL penalty at each token, plus the score at the last one.

    r_t = -coefficient * kl_t + [t = last] * score (Stiennon et al. 2020, section 3.4; Ouyang et
    al. 2022, equation 2).

    Args:
        scores_B: of the responses, after the end rule.
        kl_BT: estimate of the KL at each token, in nats.
        mask_BT: the policy's tokens.
        coefficient: weight of the KL.
        score_position: the last token, or one past it where the row has room (N+, TRL).
    """
    rewards_BT = torch.where(mask_BT, -coefficient * kl_BT, torch.zeros_like(kl_BT))  # [B, T]
    last_B1 = score_places(mask_BT=mask_BT, score_position=score_position)[:, None]
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None].to(rewards_BT.dtype))


def generalized_advantages(
    *, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> Advantages:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma * V_{t+1} - V_t; A_t = delta_t + gamma * lam * A_{t+1}; the value after
    the last state is 0, since the episode ends there. Returns are A_t + V_t. States outside the
    mask are passed over: t + 1 is the next one that counts, behind what a tool said.

    Args:
        rewards_BT: KL penalty and score.
        values_BT: values of the states.
        mask_BT: states that count: those of the policy's tokens, or `masking.value_mask`.
        gamma: discount.
        lam: lambda.
    """
    zeros_BT = torch.zeros_like(values_BT)
    rewards_BT = torch.where(mask_BT, rewards_BT, zeros_BT)
    values_BT = torch.where(mask_BT, values_BT, zeros_BT)
    # Backwards in time; what the policy did not choose is no step of it.
    advantage_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = advantage_B
    columns = []
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        counts_B = mask_BT[:, t]
        advantage_B = torch.where(counts_B, delta_B + gamma * lam * advantage_B, advantage_B)
        next_value_B = torch.where(counts_B, values_BT[:, t], next_value_B)
        columns.append(advantage_B)
    advantages_BT = torch.where(mask_BT, torch.stack(columns[::-1], dim=1), zeros_BT)  # [B, T]
    return Advantages(advantages_BT, advantages_BT + values_BT)


def moments(values: Tensor, mask: Tensor) -> Moments:
    """Return count, sum and sum of squares of the values that count."""
    counted = torch.where(mask, values, torch.zeros_like(values)).double()
    return Moments(mask.sum().double(), counted.sum(), counted.square().sum())


def whitened(values: Tensor, mask: Tensor, *, of: Moments, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over the global batch, and to mean 0 if `shift_mean`; 0 outside.

    `of` are the moments of that batch. The variance is that of a sample (divided by n - 1), as in
    TRL; lm-human-preferences and N+ divide by n, which makes a factor of sqrt(1 - 1/n), within
    .01 % from 5,000 tokens on.
    """
    # The variance from sums, which processes can add up, loses digits where the mean is large;
    # hence float64, and no less than 0 whatever rounding leaves.
    mean = of.total / of.size.clamp(min=1)
    spread = (of.squares - of.size * mean.square()).clamp(min=0)
    variance = spread / (of.size - 1).clamp(min=1)
    scaled = (values.double() - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:  # of rewards: an offset a token would pay for length, or charge it
        scaled = scaled + mean
    return torch.where(mask, scaled.to(values.dtype), torch.zeros_like(values))
