"""What is told of an adapter beside its weights: which trunk it was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.errors import ModelError

ORIGIN = "trunk.json"


@dataclass(frozen=True)
class Origin:
    """What an adapter was trained on.

    Attributes:
        base: path or hub id of the checkpoint.
        trunk: digest of its trunk's weights.
    """

    base: str
    trunk: str


def read_origin(folder: Path) -> Origin:
    """Read what an adapter was trained on.

    Raises:
        ModelError: the file is missing or no JSON of ours.
    """
    path = folder / ORIGIN
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Origin(base=str(content["base"]), trunk=str(content["trunk_sha256"]))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} does not tell the adapter's trunk ({error}); train it with a reward stage"
        ) from error


def adapter_folder(model_folder: str | Path) -> Path | None:
    """Return the adapter that was published beside a `model/`, None when there is none."""
    folder = Path(model_folder).parent / "adapter"
    return folder if (folder / ORIGIN).is_file() else None


def trunk_digest(model: Any) -> str:
    """Return the sha256 of a model's trunk: names, shapes and bytes, without head and adapters."""
    total = hashlib.sha256()
    state = model.base_model.state_dict()
    for name in sorted(k for k in state if ".lora_" not in k):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name.replace('.base_layer', '')} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
