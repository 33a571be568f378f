"""Attention over short rows on a processor, with a backward pass in plain products.

torch's flash attention for processors makes the attention matrix again in its backward pass with
products so small that in bf16 they take longer than in fp32: on two cores with AMX, 16 rows of 96
tokens took 9.5 ms backwards where plain batched products take 1.4. Up to `LARGEST` entries the
matrix is small enough to be made whole. The forward pass is torch's own, so that no output changes.

Shapes: B rows, A heads, L tokens, K tokens that they look at, D head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "rlhf_short"
"""Under which transformers knows it."""
LARGEST = 512 * 512
"""Entries of the largest matrix of a head; beyond twice as many torch's own is faster."""
_IN_CACHE = 2_000_000
"""Entries of all matrices made at once: some rows at a time are twice as fast as all, whose
matrices would go to memory that is new each time."""


def use_short_attention(model: PreTrainedModel, device: torch.device) -> None:
    """Let a model on a processor take it where it pays; where it does not, nothing changes.

    A model whose attention knows trees takes it already. `device` is where the model will run.
    """
    if device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


class _Short(torch.autograd.Function):
    """Attention of queries (B, A, L, D) to keys and values (B, A, K, D), its matrix made twice.

    A mask (B, 1, L, K) is added and lets every query see something; without one attention is
    causal, or to all keys.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.causal, ctx.scale = causal, scale
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        found = _gradients(gradient, query, key, value, mask, ctx.causal, ctx.scale)
        return (*found, None, None, None)


# An operator of its own, since torch.compile would write the loop out anew for every size.
@torch.library.custom_op("rlhf::short_attention_gradients", mutates_args=())
def _gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, length = query.shape[:3]
    if causal:
        unseen = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
        mask = unseen.expand(rows, 1, length, length)
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    # Rows at a time: their matrices (rows, A, L, K) stay in the processor's cache.
    at_once = max(1, _IN_CACHE // (heads * length * key.shape[2]))
    for start in range(0, rows, at_once):
        some = slice(start, start + at_once)
        seen = None if mask is None else mask[some]
        parts = _gradients_of_some(gradient[some], query[some], key[some], value[some], seen, scale)
        for rows_of, part in zip(gradients, parts, strict=True):
            rows_of[some] = part
    return gradients


@_gradients.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _gradients_of_some(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    # O = P V with P = softmax(s Q K^T): dV = P^T dO, dP = dO V^T, dS = P * (dP - sum(dP * P)),
    # dQ = s dS K, dK = s dS^T Q.
    scaled = query * scale
    scores = torch.matmul(scaled, key.transpose(-1, -2))
    weights = (scores if mask is None else scores.add_(mask)).softmax(dim=-1)
    to_scores = torch.matmul(gradient, value.transpose(-1, -2))
    to_scores.sub_((to_scores * weights).sum(dim=-1, keepdim=True)).mul_(weights)
    return (
        torch.matmul(to_scores, key).mul_(scale),
        torch.matmul(to_scores.transpose(-1, -2), scaled),
        torch.matmul(weights.transpose(-1, -2), gradient),
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend as `sdpa_attention_forward` does; short rows in bf16 by `_Short`.

    Those are rows without a mask, and those with a mask of bf16 numbers to add, in which every
    query sees something; the masks of transformers, which are of bools, may not be so.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None:
        fits = query.shape[2] > 1 and (not causal or query.shape[2] == key.shape[2])
    else:
        numbers = attention_mask.dtype == value.dtype and not attention_mask.requires_grad
        fits = numbers and attention_mask.shape[1] == 1
    short = query.shape[2] * key.shape[2] <= LARGEST
    plain = not dropout and more.get("position_bias") is None
    if not (torch.is_grad_enabled() and fits and short and plain and _in_bf16(value)):
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, is_causal=is_causal, **more,
        )  # fmt: skip
        return attended
    groups = query.shape[1] // key.shape[1]
    dtype = value.dtype
    output: Tensor = _Short.apply(  # type: ignore[no-untyped-call]
        query.to(dtype),
        repeat_kv(key.to(dtype), groups),
        repeat_kv(value, groups),
        None if attention_mask is None else attention_mask.expand(len(query), -1, -1, -1),
        causal and attention_mask is None,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return output.transpose(1, 2).contiguous(), None


def _in_bf16(value: Tensor) -> bool:
    return value.dtype == torch.bfloat16 and value.device.type == "cpu"


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
