"""Settings of the tool_annotate stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.contract.settings import (
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Share,
    SourceSettings,
    StageSettings,
)
from pipeline.contract.tool_settings import ToolChoice, ToolsSettings, inline_alone

CHUNK = 32
"""Texts that are annotated from one seed; another number gives other calls."""
TEXT = "{text}"
"""What a few-shot prompt has in the place of a text."""


class ToolAnnotateSettings(StageSettings):
    """Settings of a tool_annotate stage."""

    kind: Literal["tool_annotate"] = "tool_annotate"
    """Kind of stage."""
    model: Annotated[str, Ref("policy")]
    """Checkpoint whose loss tells whether a call helps."""
    caller: Annotated[str | None, Ref("policy")] = None
    """Checkpoint of the same tokenizer that writes the calls; `model` when not given."""
    train: tuple[SourceSettings, ...] = Field(min_length=1)
    """Sources of texts, or of conversations or pairs, whose last answers are annotated then."""
    tools: Annotated[ToolsSettings, AfterValidator(inline_alone)] = ToolsSettings(
        use=(ToolChoice(name="calculator"),)
    )
    """Tools that are called."""
    prompt: str | None = None
    """Few-shot prompt before each text, which stands in it for `{text}`; a caller that has learned
    to write calls needs none."""
    limit: PositiveInt | None = None
    """At most so many texts, the first."""
    opening_probability: Share = 0.05
    """Probability of a call's opening above which a place is tried; Toolformer: 0.05."""
    places: PositiveInt = 5
    """At most so many places of a text, the likeliest; Toolformer: 5."""
    calls: PositiveInt = 5
    """Calls sampled at each place; Toolformer: 5."""
    gain: Number = 1.0
    """Least loss, nats a token in the weighted mean, that a call's result saves; Toolformer: 1."""
    result: Literal["before", "inside"] = "before"
    """Where a call stands when its gain is measured: before the text, as Toolformer has it, or
    inside, for a model that has learned calls."""
    max_call_tokens: PositiveInt = 32
    """Most tokens of a call, its result apart."""
    temperature: PositiveNumber = 1.0
    """Divides the logits of calls."""
    batch_size: Annotated[PositiveInt, SameResult()] = 64
    """Calls sampled or judged together."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16; "auto" where the hardware has it."""
    trust_remote_code: bool = False
    """Run code that the checkpoints carry."""

    @model_validator(mode="after")
    def _the_prompt_holds_the_text(self) -> ToolAnnotateSettings:
        if self.prompt is not None and TEXT not in self.prompt:
            raise ValueError(f"`prompt` shows no text to annotate; write {TEXT} where it stands")
        return self
