"""Settings of the SFT stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.contract.retrieval import ReadsPassages
from pipeline.contract.settings import (
    NonNegativeInt,
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Settings,
    Share,
    SourceSettings,
)
from pipeline.contract.tool_settings import CallsTools, ToolsSettings, inline_alone
from pipeline.training.settings import TrainingSettings

DropoutShare = Annotated[Number, Field(ge=0, lt=1)]
MAX_HELDOUT = 2000
"""Held-out demonstrations that are measured, unless a `limit` of each source asks for more."""
WIDTHS = 8
"""Multiple that `row_multiple` fills rows up to."""


class TextShareSettings(Settings):
    """Raw text among the demonstrations: the model keeps what it read before."""

    train: tuple[SourceSettings, ...] = Field(min_length=1)
    """Where the text comes from."""
    share: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """Share of an epoch's rows that are text (InstructGPT, before PPO: 0.1)."""
    row_tokens: PositiveInt = 256
    """Tokens of a row of text, at most; all of them are learned."""


class SftSettings(TrainingSettings, CallsTools, ReadsPassages):
    """Settings of supervised fine-tuning."""

    kind: Literal["sft"] = "sft"
    """Kind of stage."""
    model: Annotated[str, Ref("policy")]
    """What it starts from: a stage, a path or a hub id; its tokenizer and template are kept."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer instead of the model's own, such as one adopted with another padding token."""
    train: tuple[SourceSettings, ...] = Field(min_length=1)
    """Sources of conversations, prompt/completion pairs or rankings (the best is imitated)."""
    heldout: tuple[SourceSettings, ...] = ()
    """Sources of demonstrations that measure the held-out loss."""
    heldout_share: Share = 0.02
    """Share of the prompts held out where `heldout` is not set; 0 for none."""
    # Left out where there are none: runs from before there was such a setting go on.
    shots: NonNegativeInt = Field(0, exclude_if=lambda given: given == 0)
    """Other demonstrations before each as worked examples, drawn anew for each, not learned."""
    pretraining: TextShareSettings | None = Field(None, exclude_if=lambda given: given is None)
    """Raw text among the demonstrations; none when not given."""
    max_length: PositiveInt | None = None
    """Longest demonstration, tokens; the model's context when not given."""
    too_long: Literal["cut", "drop"] = "cut"
    """Cut longer demonstrations at the end, or leave them out; both are counted."""
    max_too_long_share: Annotated[Share, SameResult()] = 0.05
    """Share of demonstrations longer than that above which the stage stops."""
    packing: bool = False
    """Put several demonstrations into one row; for accelerators, no one sees another's tokens."""
    epochs: PositiveNumber = 1.0
    """Passes over the demonstrations; InstructGPT: 16."""
    max_steps: PositiveInt | None = None
    """Optimiser steps instead of epochs."""
    batch_size: PositiveInt = 32
    """Demonstrations (packed rows) of one optimiser step, over all processes; InstructGPT: 32."""
    micro_batch_size: Annotated[PositiveInt | None, SameResult("no_dropout")] = None
    """Those of one forward pass of one process; all at once when not given."""
    learning_rate: PositiveNumber = 9.65e-6
    """Peak learning rate; InstructGPT's for 1.3B and 6B, smaller models want more."""
    dropout: DropoutShare = 0.0
    """Dropout of what each attention and feed-forward block adds; InstructGPT: 0.2."""
    group_by_length: bool = True
    """Batches of rows of similar length, which saves padding."""
    candidates: PositiveInt = 1
    """Checkpoints at equal distances, the last step among them, to choose from."""
    evaluate_every: Annotated[NonNegativeInt, SameResult()] = 0
    """Steps between two looks at the held-out loss; 0 for candidates alone."""
    log_every: Annotated[PositiveInt, SameResult()] = 10
    """Steps between two lines of metrics."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 200
    """Steps between two resume states; 0 saves at candidates and when told to stop."""

    tools: Annotated[
        ToolsSettings | None, SameResult(where="calls_no_tools"), AfterValidator(inline_alone)
    ] = None
    """Tools whose results in answers are not learned: sampling with them puts these there."""

    @property
    def no_dropout(self) -> bool:
        """Whether nothing is drawn for each pass by itself."""
        return self.dropout == 0

    @property
    def takes_older_states(self) -> bool:
        """Whether they had rows in the same order; it went by micro-batches of similar length."""
        ordered = not self.group_by_length or self.packing
        return ordered or self.micro_batch_size in (None, self.batch_size)


def row_multiple(settings: SftSettings, longest: float, *, bf16: bool, on_cpu: bool) -> int | None:
    """Return a number whose multiples rows are filled up to; None leaves them as they are."""
    # On a processor oneDNN makes and keeps a program for every width of a product in bf16, and all
    # widths between the shortest and the longest row are more than it can keep. Elsewhere a mask
    # costs more than it saves. No multiple may pass the longest row there can be.
    few = on_cpu and bf16 and not settings.packing and longest % WIDTHS == 0
    return WIDTHS if few else None
