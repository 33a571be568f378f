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
from torch import nn

from data.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the decoder layers of a model where they stand; names and weights stay.

    Raises:
        UsageError: this machine has no C++ compiler, which torch needs for processors.
    """
    compiler = os.environ.get("CXX", "g++")
    if model.device.type == "cpu" and shutil.which(compiler) is None:
        raise UsageError(
            f"compile: torch needs a C++ compiler and finds no {compiler}; install one (on Debian "
            "the package g++), name it in the environment as CXX, or set compile: false"
        )
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which layers run as written, such as for decoding token by token."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def is_compiled(model: nn.Module) -> bool:
    """Tell whether layers of a model were compiled."""
    return any(module._compiled_call_impl is not None for module in model.modules())
