"""Settings of the distill stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import model_validator

from pipeline.contract.settings import NonNegative, PositiveInt, PositiveNumber, Ref
from pipeline.stages.pretrain.settings import SHORTEST, TextSettings


class DistillSettings(TextSettings):
    """Settings of distillation."""

    kind: Literal["distill"] = "distill"
    """Kind of stage."""
    teacher: Annotated[str, Ref("policy")]
    """Checkpoint to learn from; its tokenizer is kept."""
    model: Annotated[str | None, Ref("policy")] = None
    """Student to begin with, of the same tokenizer; layers of the teacher when not given."""
    layers: PositiveInt | None = None
    """Layers of the teacher that it begins with, evenly spread; every second when not given."""
    objective: Literal["causal", "masked"] = "causal"
    """What the teacher is asked: the next token, or masked ones."""
    temperature: PositiveNumber = 2.0
    """Flattens what the teacher says, and the student to match; DistilBERT: 2."""
    soft: NonNegative = 5.0
    """What the divergence from the teacher counts in the loss; DistilBERT: 5."""
    hard: NonNegative = 2.0
    """What the true tokens count; DistilBERT: 2, DistilGPT2: 0.5."""
    cosine: NonNegative = 1.0
    """What the direction of the last hidden states counts; 0 for a student of another width."""

    @model_validator(mode="after")
    def _consistent(self) -> DistillSettings:
        if self.model is not None and self.layers is not None:
            raise ValueError("`layers` are the teacher's; `model` brings its own")
        if not self.soft + self.hard + self.cosine:
            raise ValueError("soft, hard and cosine are all 0: nothing is learned; raise one")
        if self.changed_among("masking") and self.objective != "masked":
            raise ValueError(f"`masking` is for objective masked, not {self.objective}")
        if self.masking.next_sentence:
            raise ValueError("`masking.next_sentence: true` is for a pretrain stage; set it false")
        if self.objective == "masked" and self.context_length < SHORTEST:
            raise ValueError(
                f"context_length {self.context_length} is too short for objective masked; "
                f"{SHORTEST} tokens are the least"
            )
        if self.compile:
            raise ValueError("`compile: true` is for a pretrain stage; set it false")
        if not self.attend_across_documents:
            raise ValueError("`attend_across_documents: false` is for a pretrain stage")
        return self

    def applied_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        applied = super().applied_settings()
        if self.objective != "masked":
            del applied["masking"]
        return applied
