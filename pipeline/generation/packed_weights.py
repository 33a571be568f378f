"""Weights in the order in which a processor's products read them, while tokens are decoded.

A product of few rows takes as long as its weights take to be read. In bf16 oneDNN reads them best
from blocks of its own; in fp32 what an input is multiplied with stands side by side, and oneDNN's
blocks pay for a large output head alone. A response is many products with the same weights, so they
are laid out once. Outputs are those of plain weights but for the order of sums within a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_STEPS = 32
"""Products in a row from which on blocks are made: about where they gain the time it takes."""
MOST_BYTES = 2**31
"""Bytes of the largest second copy of weights, where it does not take the place of another."""
LARGE = 2**24
"""Numbers of a weight from which on oneDNN's blocks are the fastest in fp32, too."""


@dataclass(frozen=True)
class _Packed:
    """Takes the place of a layer's `forward`.

    Attributes:
        layer: runs itself where the model turns autocast off.
        weight: oneDNN's blocks.
        bias: in bf16.
    """

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None

    def __call__(self, input: Tensor) -> Tensor:
        """Return the layer's output in bf16, like autocast, of any input."""
        output: Tensor
        if not (_casts() or input.dtype == torch.bfloat16):
            output = type(self.layer).forward(self.layer, input)
            return output
        output = torch.ops.mkldnn._linear_pointwise(
            input.to(torch.bfloat16), self.weight, self.bias, "none", [], ""
        )
        return output


@dataclass(frozen=True)
class _LaidOut:
    """Takes the place of a layer's `forward` in fp32.

    Attributes:
        layer: runs itself under autocast.
        weight: transposed, or oneDNN's blocks.
    """

    layer: nn.Linear
    weight: Tensor

    def __call__(self, input: Tensor) -> Tensor:
        """Return the layer's output."""
        output: Tensor
        if _casts() or input.dtype != torch.float32:
            output = nn.Linear.forward(self.layer, input)
        elif self.weight.is_mkldnn:
            output = torch.ops.mkldnn._linear_pointwise(
                input, self.weight, self.layer.bias, "none", [], ""
            )
        else:
            output = nn.functional.linear(input, self.weight, self.layer.bias)
        return output


@contextmanager
def packed_weights(
    model: PreTrainedModel, *, rows: int, steps: int, fp32: bool = False
) -> Iterator[None]:
    """Let a model's linear layers read packed weights on a processor.

    Meanwhile nothing may be differentiated and no weight may change. The blocks take the bytes of
    the weights: in bf16 under autocast in place of the copies that it would keep, else beside the
    weights, where they are no more than `MOST_BYTES`.

    Args:
        model: unwrapped.
        rows: of most products.
        steps: products that each layer makes at most.
        fp32: pack weights in fp32, too, which changes outputs by rounding.
    """
    layers = _layers(model, fp32=fp32) if steps >= LEAST_STEPS else []
    try:
        for layer in layers:
            layer.forward = _pack(layer, rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def has_bf16_blocks() -> bool:
    """Tell whether this torch has oneDNN, and this processor bf16 products by it."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(built and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _layers(model: PreTrainedModel, *, fp32: bool) -> list[nn.Module]:
    """Return the layers that can be packed: of plain weights, and not made to run otherwise."""
    if model.device.type != "cpu":
        return []
    casts, bf16, layers, size = _casts(), has_bf16_blocks(), list[nn.Module](), 0
    for module in model.modules():
        if type(module) not in (nn.Linear, Conv1D) or "forward" in vars(module):
            continue
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is None or type(weight.detach()) is not Tensor:
            continue
        if bf16 and (casts or weight.dtype == torch.bfloat16):
            layers.append(module)
            size += 2 * weight.numel()
        elif fp32 and not casts and weight.dtype == torch.float32 and type(module) is nn.Linear:
            layers.append(module)
            size += 4 * weight.numel()
    return layers if casts or size <= MOST_BYTES else []


def _casts() -> bool:
    """Tell whether autocast computes in bf16 on processors."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _pack(layer: nn.Module, rows: int) -> _Packed | _LaidOut:
    parameters = dict(layer.named_parameters(recurse=False))
    weight, bias = parameters["weight"].detach(), parameters.get("bias")
    if isinstance(layer, nn.Linear) and weight.dtype == torch.float32 and not _casts():
        built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if built and weight.numel() >= LARGE:
            return _LaidOut(layer, torch.ops.mkldnn._reorder_linear_weight(weight, rows))
        return _LaidOut(layer, weight.t().contiguous().t())
    if isinstance(layer, Conv1D):
        weight = weight.t().contiguous()
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight.to(torch.bfloat16), rows)
    return _Packed(layer, blocks, None if bias is None else bias.detach().to(torch.bfloat16))
