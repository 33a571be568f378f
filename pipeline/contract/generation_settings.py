"""The generation settings of a checkpoint, `generation_config.json`: whether they can be saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data.errors import in_words
from data.json_object import read_object
from reward.network.files import GENERATION

_NAMED = re.compile(r"^- `(\w+)`:", re.MULTILINE)
_HARMLESS = frozenset(
    (
        "_from_model_config", "transformers_version", "do_sample", "temperature", "top_p", "top_k",
        "bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "max_length",
        "use_cache", "output_attentions", "output_hidden_states",
    )
)  # fmt: skip
"""Keys that transformers takes with any value, alone or once those nothing reads are unset."""


def generation_problem(folder: Path) -> str | None:
    """Tell why a checkpoint's generation settings can't be loaded and saved; None where they can.

    Most have but keys that are no matter; then nothing is imported.
    """
    content = read_object(folder / GENERATION)
    if _HARMLESS.issuperset(content):
        return None
    from transformers import GenerationConfig

    try:
        config = GenerationConfig(**content)
        unset_unread(config)
        config.validate(strict=True)
    except Exception as error:  # of every kind, for values it does not expect
        return (
            f"{folder / GENERATION} can't be used: {in_words(error)}; correct or delete that file"
        )
    return None


def unset_unread(config: Any) -> dict[str, Any]:
    """Unset the generation settings that others make meaningless, and return them.

    Published checkpoints have such, a temperature beside `do_sample: false` above all. Nothing
    reads them, but transformers refuses to save them once anything else has changed.

    Args:
        config: transformers' generation config; changed in place.
    """
    unread = {}
    try:
        config.validate(strict=True)
    except ValueError as error:
        for name in _NAMED.findall(str(error)):
            unread[name] = getattr(config, name)
            setattr(config, name, None)
    return unread
