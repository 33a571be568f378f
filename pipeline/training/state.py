"""The state of a training that a resumed run takes up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file
from safetensors.torch import save_model as save_weights
from torch import nn

from pipeline.contract.resume import load_state, rng_state, save_state
from pipeline.training.accelerator import (
    gathered_optimizer_state,
    gathered_state,
    is_sharded,
    restore_own_rng,
)


def save_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    extra: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> None:
    """Write weights, optimiser, random state and `extra` into a folder.

    Rank 0 writes what all ranks share, every rank its random state. To be called by
    `ResumeStore.save`, which makes the folder whole or not there. Sharded weights are gathered, so
    that the state is the same on any number of processes.

    Args:
        folder: an existing folder.
        model: the bare module, not a wrapper.
        optimizer: its optimiser.
        extra: tensors, numbers, strings, lists and dictionaries of the caller.
        rank: of this process.
    """
    save_state(folder / f"rng-{rank}.pt", rng_state())
    sharded = is_sharded(model)
    weights = gathered_state(model) if sharded else {}
    optimizer_state = gathered_optimizer_state(optimizer)
    if rank != 0:
        return
    if sharded:
        # A tensor of two names goes once, as `save_weights` does it.
        once = {id(tensor): name for name, tensor in reversed(weights.items())}
        save_file({name: weights[name] for name in once.values()}, folder / "model.safetensors")
    else:
        save_weights(model, str(folder / "model.safetensors"))
    state = {
        "optimizer": optimizer_state,
        "extra": dict(extra or {}),
    }
    save_state(folder / "state.pt", state)


def load_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rank: int = 0,
) -> dict[str, Any]:
    """Restore what `save_training_state` wrote; return `extra`.

    The state may be of another number of processes; one that is new keeps its random state.
    """
    if is_sharded(model):
        model.load_state_dict(load_file(folder / "model.safetensors"))
    else:
        load_model(model, str(folder / "model.safetensors"))
    state = load_state(folder / "state.pt")
    optimizer.load_state_dict(state["optimizer"])
    restore_own_rng(folder, rank)
    extra: dict[str, Any] = state["extra"]
    return extra
