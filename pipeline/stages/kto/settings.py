"""Settings of the kto stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.contract.settings import PositiveNumber
from pipeline.stages.dpo.settings import PreferenceSettings

Several = Annotated[int, Field(gt=1)]


class KtoSettings(PreferenceSettings):
    """Settings of a kto stage; a pair's better answer is desirable, the other is not."""

    kind: Literal["kto"] = "kto"
    """Kind of stage."""
    desirable_weight: PositiveNumber = 1.0
    """Weight of the losses of desirable answers."""
    undesirable_weight: PositiveNumber = 1.0
    """Weight of those of the others, of which there are as many."""
    batch_size: Several = 16
    """Pairs of one optimiser step, over all processes; KTO: 32 answers."""
    micro_batch_size: Several | None = None
    """Pairs of one forward pass of one process, over which the KL is estimated, so that the result
    follows from it; all at once when not given."""
    learning_rate: PositiveNumber = 5e-7
    """Peak learning rate; KTO's for 1B to 30B, smaller models want more."""

    @model_validator(mode="after")
    def _ranked(self) -> KtoSettings:
        if self.ties == "half":
            raise ValueError(
                "ties: half is for dpo; of two answers that tie none is desirable, set ties: drop"
            )
        return self
