"""Settings of the tokenizer stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.text.objectives import ObjectiveName
from pipeline.contract.settings import Ref, SourceSettings, StageSettings

LINES = "lines"
"""Stands for a chat template of plain words."""
MIN_FREQUENCY = 2
"""Occurrences that a merge needs."""


class TokenizerSettings(StageSettings):
    """Settings of a tokenizer stage."""

    kind: Literal["tokenizer"] = "tokenizer"
    """Kind of stage."""
    train: tuple[SourceSettings, ...] = ()
    """Text to learn from; with `adopt`, text on which bytes per token is measured."""
    vocab_size: Annotated[int, Field(ge=264)] = 8192
    """Tokens in all: 256 bytes, the special tokens, and merges."""
    objective: ObjectiveName = "causal"
    """What models are pretrained with it: a mask token, sentinels, what stands around a text."""
    special_tokens: tuple[str, ...] = ()
    """Further special tokens, beside those for padding, documents and chat turns."""
    chat_template: str | None = None
    """File with a Jinja chat template; `lines` for one of plain words, for models that have no
    tokens for turns; ours (or the adopted one's) when not given."""
    adopt: Annotated[str | None, Ref("tokenizer")] = None
    """Take over the tokenizer of this checkpoint: a folder, .gguf file, hub id, or stage."""
    pad_token: str | None = None
    """Padding token of an adopted tokenizer; added when it is not in its vocabulary."""
    typed_control_tokens: Literal["text", "tokens"] = "text"
    """What control tokens that texts spell, such as <|user|>, are to the stages that use it."""
    trust_remote_code: bool = False
    """Run code that an adopted tokenizer carries."""

    @model_validator(mode="after")
    def _learned_or_adopted(self) -> TokenizerSettings:
        if self.adopt is None and not self.train:
            raise ValueError("give `train` sources to learn from, or `adopt` a checkpoint's")
        if self.adopt is None and self.pad_token is not None:
            raise ValueError("`pad_token` goes with `adopt`; a tokenizer learned here has <|pad|>")
        if self.adopt is not None and self.changed_among("vocab_size"):
            raise ValueError("`vocab_size` is for learning; it does not go with `adopt`")
        return self

    def applied_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        applied = super().applied_settings()
        if self.objective == "causal":
            del applied["objective"]
        return applied
