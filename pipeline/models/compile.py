"""Compilation of a model's layers for training, by torch.compile, one layer for all.

The layers of a model are the same program with other weights: compiled one at a time they share
it, which takes seconds where the whole model takes minutes, and lengths may vary.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from data.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Compile the layers of a model where they stand; names and weights stay.

    Args:
        model: of transformers, or one that holds one and tells its `_no_split_modules`; still to
            be moved, or there.
        device: where it will run.

    Raises:
        ModelError: the model does not say what its layers are, or this machine has no C++
            compiler, which torch needs for processors.
    """
    require_compiler(device)
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(
            f"compile: {type(model).__name__} does not say which modules are its layers; set "
            "compile: false"
        )
    for layer in layers:
        layer.compile(dynamic=True)


def require_compiler(device: torch.device) -> None:
    """Refuse to compile where torch could not.

    Raises:
        ModelError: this machine has no C++ compiler, which torch needs for processors.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ModelError(
            f"compile: torch needs a C++ compiler and finds no {compiler}; install one (on Debian "
            "the package g++), name it in the environment as CXX, or set compile: false"
        )


def refuse_sharded(sharded: bool) -> None:
    """Refuse to compile layers whose weights are gathered as they are called.

    Raises:
        ModelError: they are sharded.
    """
    if sharded:
        raise ModelError(
            "compile: true is not for sharded weights; set it to false, or launch with ddp.yaml"
        )


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which layers run as written, such as for decoding token by token."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
