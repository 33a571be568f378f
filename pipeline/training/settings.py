"""Settings of how a model is trained, the same in pretraining, fine-tuning and the reward model."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.errors import RecipeError
from pipeline.contract.settings import (
    NonNegative,
    Number,
    PositiveInt,
    PositiveNumber,
    SameResult,
    Share,
    StageSettings,
)
from pipeline.training.schedule import Schedule

HELDOUT_CHUNKS = 256
"""Held-out chunks that are looked at, at most, spread evenly."""


class TrainingSettings(StageSettings):
    """The optimiser, its schedule, and the precision."""

    learning_rate: PositiveNumber
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after warm-up; InstructGPT: cosine."""
    warmup_share: Share = 0.03
    """Share of the steps over which the learning rate rises."""
    final_share: Share = 0.1
    """Share of the peak that the schedule ends at; InstructGPT: 0.1."""
    weight_decay: NonNegative = 0.0
    """AdamW's, on matrices alone."""
    betas: tuple[Number, Number] = (0.9, 0.95)
    """AdamW's; InstructGPT: 0.9, 0.95."""
    epsilon: PositiveNumber = 1e-8
    """AdamW's."""
    max_gradient_norm: PositiveNumber = 1.0
    """Longer gradients are scaled down to it."""
    bf16: bool | Literal["auto"] = "auto"
    """Forward pass in bfloat16; "auto" where the hardware has it. Weights stay float32."""
    gradient_checkpointing: Annotated[bool, SameResult()] = False
    """Compute activations twice to save memory."""
    trust_remote_code: bool = False
    """Run code that the checkpoint carries."""


class LmSettings(TrainingSettings):
    """How a causal language model learns packed text; what `LmTrainer` takes."""

    context_length: Annotated[int, Field(ge=2)] = 512
    """Tokens of a chunk; a model from scratch has as many positions, or `positions`."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor steps in shares of a matrix's own size, as T5 wants it (learning_rate: 0.01)."""
    attend_across_documents: bool = True
    """Whether a token sees the documents before its own in the chunk; false is slower."""
    steps: PositiveInt | None = None
    """Optimiser's steps in all."""
    epochs: PositiveNumber | None = None
    """Passes over the text instead of `steps`; 1 when none of the three is given."""
    tokens: PositiveInt | None = None
    """Tokens to learn instead of `steps`."""
    batch_size: PositiveInt = 32
    """Chunks of one step, over all processes."""
    micro_batch_size: Annotated[PositiveInt | None, SameResult()] = None
    """Chunks of one forward pass; gradients gather until the batch is done."""
    compile: Annotated[bool, SameResult()] = False
    """Compile the model with torch.compile."""

    @model_validator(mode="after")
    def _one_length(self) -> LmSettings:
        lengths = [k for k in ("steps", "epochs", "tokens") if getattr(self, k) is not None]
        if len(lengths) > 1:
            raise ValueError(f"{' and '.join(lengths)} contradict; give one of them")
        unused = self.changed_among("betas", "epsilon")
        if self.optimizer == "adafactor" and unused:
            raise ValueError(f"`{unused[0]}` is AdamW's, adafactor has none; leave it out")
        return self

    def applied_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        applied = super().applied_settings()
        # So that what was done before there was a choice stays up to date.
        for name in ("optimizer",) if self.optimizer == "adamw" else ("betas", "epsilon"):
            del applied[name]
        return applied

    def total_steps(self, chunks: int) -> int:
        """Return the number of steps on a corpus of so many chunks."""
        if self.steps is not None:
            return self.steps
        wanted = (self.epochs or 1.0) * chunks
        if self.tokens is not None:
            wanted = self.tokens / self.context_length
        return max(1, math.ceil(wanted / self.batch_size))


def micro_batches(batch: int, micro: int | None, processes: int) -> tuple[int, int]:
    """Return rows of one forward pass of one process, and passes of one optimiser step.

    Raises:
        RecipeError: the batch can't be divided so.
    """
    if batch % processes:
        raise RecipeError(
            f"batch_size {batch} can't be shared by {processes} processes; choose a multiple"
        )
    micro = batch // processes if micro is None else micro
    if batch % (micro * processes):
        raise RecipeError(
            f"batch_size {batch} is no multiple of micro_batch_size {micro} times {processes} "
            "processes"
        )
    return micro, batch // (micro * processes)
