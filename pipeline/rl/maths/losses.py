"""The losses of PPO, as sums over a count that the caller gives.

Every mean divides by the number of tokens of the *global* minibatch, not by that of the tensors
at hand. So the losses and gradients of micro-batches, and of processes whose gradients are summed,
add up to those of the minibatch whatever their lengths. TRL 1.12 averages the means of its
micro-batches instead, which weighs tokens in short responses more.

Shapes: B episodes, T response tokens, N tokens, V vocabulary. Masks are True where a token counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.rl.maths.masking import masked_mean

_NEVER = -1e9
"""Logit of what is never sampled; not infinite, which would make an entropy NaN."""
LOGITS_IN_CACHE = 2**18
"""Logits worked on at a time: 1 MiB in fp32."""


class PolicyLoss(NamedTuple):
    """The clipped surrogate and what tells how far the policy has moved; all scalars.

    Attributes:
        loss: mean over tokens of max(-A * ratio, -A * clip(ratio)).
        approximate_kl: mean of half the squared log ratio.
        clip_share: share of tokens where the clip binds.
        ratio: mean probability ratio.
    """

    loss: Tensor
    approximate_kl: Tensor
    clip_share: Tensor
    ratio: Tensor


class ValueLoss(NamedTuple):
    """The clipped value loss and the share of tokens where the clip binds."""

    loss: Tensor
    clip_share: Tensor


class TokenScores(NamedTuple):
    """Log-probability of each token and entropy of the distribution it came from."""

    logprobs_N: Tensor
    entropies_N: Tensor


def policy_loss(
    *,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip: float,
    count: float | Tensor,
) -> PolicyLoss:
    """PPO's clipped surrogate objective (Schulman et al. 2017, equation 7), to be minimised.

    Args:
        logprobs_BT: under the policy that is trained; the only one with a gradient.
        old_logprobs_BT: under the policy that sampled.
        advantages_BT: as whitened.
        mask_BT: the policy's tokens.
        clip: how far the ratio may move from 1.
        count: such tokens of the global minibatch.
    """
    # Padding is set to 0 before exp, so that nothing there can overflow into the gradient.
    log_ratio_BT = torch.where(mask_BT, logprobs_BT - old_logprobs_BT, 0.0)
    ratio_BT = log_ratio_BT.exp()  # pi / pi_old of each token
    # The larger loss is the lower bound on the objective: nothing is gained by a ratio beyond the
    # clip, and what a ratio beyond it loses still counts.
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1.0 - clip, 1.0 + clip)
    loss = masked_mean(torch.max(plain_BT, clipped_BT), mask_BT, count=count)
    with torch.no_grad():
        return PolicyLoss(
            loss,
            masked_mean(0.5 * log_ratio_BT.square(), mask_BT, count=count),
            masked_mean((clipped_BT > plain_BT).float(), mask_BT, count=count),
            masked_mean(ratio_BT, mask_BT, count=count),
        )


def value_loss(
    *,
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip: float | None,
    count: float | Tensor,
) -> ValueLoss:
    """Half the larger of the plain and the clipped squared error (PPO2; N+ detail 27).

    Args:
        values_BT: of the value model that is trained; the only one with a gradient.
        old_values_BT: when the episodes were sampled.
        returns_BT: what they shall become.
        mask_BT: states whose values count: those of the policy's tokens, or `masking.value_mask`.
        clip: how far a value may move from its old one; None never clips.
        count: such states of the global minibatch.
    """
    plain_BT = (values_BT - returns_BT).square()
    if clip is None:
        loss = 0.5 * masked_mean(plain_BT, mask_BT, count=count)
        return ValueLoss(loss, torch.zeros_like(loss))
    # Nothing is gained by moving further than the clip towards the return; away still counts.
    moved_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    clipped_BT = (moved_BT - returns_BT).square()
    loss = 0.5 * masked_mean(torch.max(plain_BT, clipped_BT), mask_BT, count=count)
    share = masked_mean((clipped_BT > plain_BT).float(), mask_BT, count=count)
    return ValueLoss(loss, share.detach())


def language_loss(*, logprobs_BT: Tensor, mask_BT: Tensor, count: float | Tensor) -> Tensor:
    """Cross-entropy of pretraining rows, the term of PPO-ptx (Ouyang et al. 2022, equation 2).

    Log-probabilities are those at temperature 1, `count` the tokens of all processes' rows.
    """
    return masked_mean(-logprobs_BT, mask_BT, count=count)


def token_scores(
    *,
    logits_NV: Tensor,
    tokens_N: Tensor,
    temperature: float,
    entropy: bool,
    unused_U: Tensor | None = None,
) -> TokenScores:
    """Return log-probabilities and entropies under the temperature-scaled distribution.

    Args:
        logits_NV: as the model gives them.
        tokens_N: the tokens that were sampled.
        temperature: divides the logits, in roll-out, reference and update alike.
        entropy: whether to compute the entropies; zeros else.
        unused_U: ids left out of the distribution, in roll-out, reference and update alike.
    """
    if not entropy:
        parts = (logits_NV, tokens_N, temperature, unused_U)
        logprobs_N: Tensor = _TokenLogprobs.apply(*parts)  # type: ignore[no-untyped-call]
        return TokenScores(logprobs_N, torch.zeros_like(logprobs_N))
    # An entropy is over all tokens: autograd keeps whole rows [N, V] in fp32.
    scaled_NV = logits_NV.float()
    if temperature != 1.0:
        scaled_NV = scaled_NV / temperature
    if unused_U is not None:
        scaled_NV = scaled_NV.index_fill(1, unused_U, _NEVER)
    logprobs_NV = scaled_NV.log_softmax(dim=-1)
    entropies_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)  # -sum of p log p, in nats
    return TokenScores(logprobs_NV.gather(1, tokens_N[:, None])[:, 0], entropies_N)


class _TokenLogprobs(torch.autograd.Function):
    """Log-probabilities of tokens, some rows at a time in fp32.

    Nothing of the logits' size is kept or made but the logits and their gradient, in their own
    precision; what is in between stays in the processor's cache.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, tokens_N: Tensor, temperature: float, unused_U: Tensor | None
    ) -> Tensor:
        # log p(token) = its logit - log of the sum of all exp(logit). That sum [N] is all backward
        # needs to make the probabilities anew, where softmax would keep [N, V] of them.
        lse_N = torch.empty(len(tokens_N), device=logits_NV.device)
        chosen_N = torch.empty_like(lse_N)
        for rows, scaled in _some_scaled(logits_NV, temperature, unused_U):  # some of N rows, V
            lse_N[rows] = scaled.logsumexp(dim=-1)
            chosen_N[rows] = scaled.gather(1, tokens_N[rows, None])[:, 0]
        ctx.save_for_backward(logits_NV, tokens_N, lse_N, unused_U)
        ctx.temperature = temperature
        return chosen_N - lse_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, tokens_N, lse_N, unused_U = ctx.saved_tensors
        gradient_NV = torch.empty_like(logits_NV)
        for rows, scaled in _some_scaled(logits_NV, ctx.temperature, unused_U):
            # d log p(token) / d logit = (1 if it is the token's - its probability) / temperature
            weight = gradient_N[rows, None] / ctx.temperature
            part = scaled.sub_(lse_N[rows, None]).exp_().mul_(-weight)
            gradient_NV[rows] = part.scatter_add_(1, tokens_N[rows, None], weight)
        return gradient_NV, None, None, None


def _some_scaled(
    logits_NV: Tensor, temperature: float, unused_U: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Cut rows into pieces that fit a processor's cache; an accelerator takes more at a time.

    Each comes with its scaled logits in fp32: a copy, which may be overwritten.
    """
    elements = LOGITS_IN_CACHE if logits_NV.device.type == "cpu" else 64 * LOGITS_IN_CACHE
    step = max(1, elements // logits_NV.shape[1])
    for start in range(0, len(logits_NV), step):
        rows = slice(start, start + step)
        scaled = logits_NV[rows].to(torch.float32, copy=True).div_(temperature)
        yield rows, scaled if unused_U is None else scaled.index_fill_(1, unused_U, _NEVER)
