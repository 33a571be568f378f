"""The model that a recipe starts from: what it is, and what its tokenizer lacks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import ModelError
from pipeline.contract.facts import read_facts
from pipeline.contract.handover import local_checkpoint
from pipeline.contract.padding import pad_token_for
from pipeline.contract.settings import is_external

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Start:
    """What a recipe starts from.

    Attributes:
        reference: as the recipe names it; "" for a model from scratch.
        tokenizer: its tokenizer, with the chat template that it will have.
        width: of its residual stream; 0 from scratch.
        family: its architecture by transformers' name.
        context: longest input in tokens, None for any.
        pad_token: padding token that it is given, None where its own will do.
        ends_with: its own padding token, where that ends its texts too.
        lines: whether it has no chat template of its own.
    """

    reference: str
    tokenizer: PreTrainedTokenizerBase
    width: int
    family: str
    context: int | None
    pad_token: str | None = None
    ends_with: str | None = None
    lines: bool = False

    def told(self) -> str:
        """Return a line on what was found."""
        context = f"{self.context:,} tokens" if self.context else "any length"
        pads = ""
        if self.pad_token is not None:
            own = (
                f"with {self.ends_with}, its end of sequence" if self.ends_with else "with nothing"
            )
            pads = f"; pads {own}: {self.pad_token} instead"
        template = "; no chat template: turns as lines of plain words" if self.lines else ""
        return (
            f"model: {self.reference}: {self.family}, {self.width:,} wide, reads {context}"
            f"{pads}{template}"
        )


def start_from(given: str) -> Start:
    """Look at a model's small files; no weights are loaded.

    Args:
        given: a folder, a finished stage's folder, a .gguf file or a hub id.

    Raises:
        ModelError: nothing loadable is there, or it is no causal language model that can pad.
    """
    from data.text.templates import has_template
    from pipeline.models.load import load_config, load_tokenizer

    folder = local_checkpoint(given)
    source: str | Path = folder or given
    tokenizer, config = load_tokenizer(source), load_config(source)
    with tempfile.TemporaryDirectory() as place:  # a .gguf file has no such files
        tokenizer.save_pretrained(place)
        config.save_pretrained(place)
        facts = read_facts(Path(place), source=given)
    text = config.get_text_config()
    if not facts.writes or getattr(text, "hidden_size", None) is None:
        raise ModelError(
            f"{given} is a {facts.architecture or facts.model_type}; a first recipe is written for "
            "causal language models, see `rlhf recipes` for those of other kinds"
        )
    if tokenizer.eos_token is None:
        raise ModelError(f"{given} has no end-of-sequence token; name a model that has one")
    same = facts.pad_token in (None, facts.eos_token)
    pad = pad_token_for(facts) if same else None
    if same and pad is None:
        raise ModelError(
            f"{given} pads with {facts.pad_token or 'nothing'} and ends texts with "
            f"{facts.eos_token}, and its vocabulary has no token to spare; add one with "
            "transformers (add_special_tokens, resize_token_embeddings), save both, and name that "
            "folder"
        )
    return Start(
        reference=_reference(given),
        tokenizer=tokenizer,
        width=text.hidden_size,
        family=str(facts.model_type),
        context=facts.context_length,
        pad_token=pad,
        ends_with=facts.pad_token if same else None,
        lines=not has_template(tokenizer),
    )


def from_scratch(texts: Iterable[str], vocabulary: int) -> Start:
    """Return a start from nothing; its tokenizer is learned of a sample, to count tokens by."""
    from data.text.tokenizer import train_tokenizer

    tokenizer: Any = train_tokenizer(texts, vocabulary_size=vocabulary, min_frequency=2)
    return Start("", tokenizer, 0, "llama", None)


def _reference(given: str) -> str:
    """Return what a recipe calls it: a path has a slash, and a hub id without one its prefix."""
    if Path(given).expanduser().exists():
        return given if is_external(given) else f"./{given}"
    return given if is_external(given) else f"hub:{given}"
