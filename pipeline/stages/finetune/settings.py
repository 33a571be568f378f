"""Settings of the finetune stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.contract.settings import (
    NonNegative,
    NonNegativeInt,
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Share,
    SourceSettings,
)
from pipeline.training.schedule import Schedule
from pipeline.training.settings import TrainingSettings

HeadName = Literal["classify", "span", "tag"]
FORMATS: Mapping[HeadName, str] = {"classify": "labelled", "span": "extracts", "tag": "tagged"}
"""How rows are read by each head where a source names no format."""
OPTIONS = {"stride": "span", "max_answer_tokens": "span", "max_truncated_share": "classify"}
"""Settings that one head has."""
LONGEST = 512
"""Tokens of an input where nothing is said, unless the model takes fewer."""


class FinetuneSettings(TrainingSettings):
    """Settings of a finetune stage; the numbers are BERT's (Devlin et al. 2019, A.3)."""

    kind: Literal["finetune"] = "finetune"
    """Kind of stage."""
    head: HeadName
    """What is learned: classes of texts, answers to questions in a text, or tags of words."""
    model: Annotated[str, Ref("policy")]
    """Checkpoint that it starts from: an encoder, or another for which there is such a head."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer instead of the model's own, such as one adopted with another padding token."""
    train: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Rows to learn: text and label; question, context and answer; tokens and tags, or spans."""
    heldout: tuple[SourceSettings, ...] = ()
    """Rows the model is judged on."""
    heldout_share: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Share of the texts of `train` kept to judge the model; unused where `heldout` is set."""
    max_length: PositiveInt | None = None
    """Longest input in tokens; 512, or what the model takes, when not given."""
    stride: NonNegativeInt | None = None
    """Tokens that two windows of a long context share; a quarter of `max_length` when not given."""
    max_answer_tokens: PositiveInt = 30
    """Longest answer that is given."""
    max_truncated_share: Annotated[Share, SameResult()] = 0.05
    """Share of texts longer than `max_length` above which the stage stops."""
    epochs: PositiveNumber = 3.0
    """Passes over the rows."""
    batch_size: PositiveInt = 32
    """Rows of one step, over all processes; of long contexts their windows."""
    micro_batch_size: Annotated[PositiveInt | None, SameResult()] = None
    """Rows of one forward pass; gradients gather until the batch is done."""
    learning_rate: PositiveNumber = 5e-5
    """Peak learning rate."""
    schedule: Schedule = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_share: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    final_share: Share = 0.0
    """Share of the peak that the schedule ends at."""
    weight_decay: NonNegative = 0.01
    """AdamW's, on matrices alone."""
    betas: tuple[Number, Number] = (0.9, 0.999)
    """AdamW's."""
    log_every: Annotated[PositiveInt, SameResult()] = 10
    """Steps between two lines of metrics."""
    evaluate_every: Annotated[NonNegativeInt, SameResult()] = 100
    """Steps between two looks at the held-out rows; 0 for the end alone."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 100
    """Steps between two resume states; 0 saves only when told to stop."""

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSettings:
        for name in self.changed_among(*OPTIONS):
            if OPTIONS[name] != self.head:
                raise ValueError(f"`{name}` is for head {OPTIONS[name]}, not {self.head}")
        if not self.heldout and not self.heldout_share:
            raise ValueError("nothing is held out: set heldout_share above 0, or give heldout")
        if self.stride is not None and self.stride >= (self.max_length or LONGEST):
            raise ValueError(
                f"stride {self.stride} is not below max_length {self.max_length or LONGEST}"
            )
        return self

    def applied_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        applied = super().applied_settings()
        for name, head in OPTIONS.items():
            if head != self.head:
                del applied[name]
        return applied

    def read_as(self, sources: Sequence[SourceSettings]) -> tuple[SourceSettings, ...]:
        """Return sources with the format that the head needs, where they name none."""
        named = {"format": FORMATS[self.head]}
        return tuple(s.model_copy(update=named) if s.format == "auto" else s for s in sources)

    def total_steps(self, rows: float) -> int:
        """Return the number of steps on so many rows."""
        return max(1, math.ceil(self.epochs * rows / self.batch_size))
