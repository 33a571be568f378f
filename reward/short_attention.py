"""Causal attention over short rows on a processor, with a backward pass in plain products.

torch's flash attention for processors makes the attention matrix again in its backward pass with
products so small that in bf16 they take longer than in fp32: on two cores with AMX, 16 rows of 96
tokens took 9.5 ms backwards where plain batched products take 1.4. Up to `LONGEST` tokens the
matrix is small enough to be made whole. The forward pass is torch's own, so that no output changes.

Shapes: B rows, A heads, L tokens, D head width.
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

NAME = "rlhf_short_causal"
"""Under which transformers knows it."""
LONGEST = 256
"""Tokens of the longest row; beyond some 300 torch's own is faster."""


def use_short_attention(model: PreTrainedModel, device: torch.device) -> None:
    """Let a model on a processor take it where it pays; where it does not, nothing changes.

    A model whose attention knows trees takes it already.

    Args:
        model: still to be moved, or there.
        device: where it will run.
    """
    if device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


class _ShortCausal(torch.autograd.Function):
    """Causal attention of queries, keys and values (B, A, L, D) that makes its matrix twice."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        length = query.shape[2]
        scaled = query * ctx.scale
        unseen = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = torch.matmul(scaled, key.transpose(-1, -2)).masked_fill(unseen, float("-inf"))
        weights = scores.softmax(dim=-1)
        to_weights = torch.matmul(gradient, value.transpose(-1, -2))
        # The softmax's own backward pass.
        centred = to_weights - (to_weights * weights).sum(dim=-1, keepdim=True)
        to_scores = weights * centred
        return (
            torch.matmul(to_scores, key) * ctx.scale,
            torch.matmul(to_scores.transpose(-1, -2), scaled),
            torch.matmul(weights.transpose(-1, -2), gradient),
            None,
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
    """Attend as `sdpa_attention_forward` does; short causal rows in bf16 by `_ShortCausal`."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    short = query.shape[2] == key.shape[2] and 1 < query.shape[2] <= LONGEST
    plain = attention_mask is None and not dropout and more.get("position_bias") is None
    if not (torch.is_grad_enabled() and short and plain and causal and _in_bf16(value)):
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask,
            dropout=dropout, scaling=scaling, is_causal=is_causal, **more,
        )  # fmt: skip
        return attended
    groups = query.shape[1] // key.shape[1]
    dtype = value.dtype
    output: Tensor = _ShortCausal.apply(  # type: ignore[no-untyped-call]
        query.to(dtype),
        repeat_kv(key.to(dtype), groups),
        repeat_kv(value, groups),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return output.transpose(1, 2).contiguous(), None


def _in_bf16(value: Tensor) -> bool:
    return value.dtype == torch.bfloat16 and value.device.type == "cpu"


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
