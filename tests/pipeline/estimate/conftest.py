"""Counts what stages really do: FLOPs of their matrix products, and bytes of live tensors."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import reward.network.short_attention  # noqa: F401 - defines the operator that is counted below


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def packed_product(input: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(input) * int(weight[0])


# The processor's own kernels are not among those that torch counts.
KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    torch.ops.rlhf.short_attention_gradients: attention_backward,
}
if torch.backends.mkldnn.is_available():
    KERNELS[torch.ops.mkldnn._linear_pointwise] = packed_product


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations have touched and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._take(tree_leaves((args, kwargs)))
        out = func(*args, **(kwargs or {}))
        self._take(tree_leaves(out))
        return out

    def _take(self, leaves: list[Any]) -> None:
        for leaf in leaves:
            if not isinstance(leaf, torch.Tensor) or leaf.device.type != "cpu":
                continue
            if leaf.is_mkldnn:  # blocks of its own, in no storage
                self._hold(leaf, id(leaf), leaf.numel() * leaf.element_size())
            else:
                storage = leaf.untyped_storage()
                self._hold(storage, storage._cdata, storage.nbytes())

    def _hold(self, owner: Any, key: int, size: int) -> None:
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(owner, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


class Measured:
    """FLOPs and the most bytes of what ran under it."""

    def __init__(self) -> None:
        self.flops = self.peak = 0


@pytest.fixture
def measured() -> Callable[..., Measured]:
    """Return what runs a function and tells its FLOPs and its most live bytes.

    measured(work, flops=True); without FLOPs the bytes are exact under checkpointing too.
    """

    def run(work: Callable[[], object], *, flops: bool = True) -> Measured:
        found, live = Measured(), LiveBytes()
        counter = FlopCounterMode(display=False, custom_mapping=KERNELS)
        # The counter keeps what gradient checkpointing computes again alive.
        with counter if flops else contextlib.nullcontext(), live:
            work()
        found.flops, found.peak = counter.get_total_flops() if flops else 0, live.peak
        return found

    return run


@pytest.fixture
def local_policy(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """Return a builder of saved models with a tokenizer: local_policy(architecture, **shape)."""

    def build(architecture: str = "llama", **changes: Any) -> Path:
        from pipeline.models.architectures import Shape, build_policy

        shape = {
            "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 4, "intermediate_size": 64,
            "context_length": 256, **changes,
        }  # fmt: skip
        tokenizer = tiny_tokenizer()
        folder = tmp_path / architecture
        model = build_policy(architecture, Shape(**shape), tokenizer, seed=0)  # type: ignore[arg-type]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
