"""Settings of the rloo stage."""

from __future__ import annotations

from typing import Literal

from pipeline.contract.settings import NonNegative, PositiveInt, PositiveNumber
from pipeline.stages.grpo.settings import GroupSettings, Several


class RlooSettings(GroupSettings):
    """Settings of an rloo stage."""

    kind: Literal["rloo"] = "rloo"
    """Kind of stage."""
    group_size: Several = 4
    """Answers to each prompt of an update (RLOO: 2 and 4)."""
    batch_size: PositiveInt = 512
    """Episodes of one update, over all processes (RLOO: 512)."""
    temperature: PositiveNumber = 0.7
    """Divides the logits in sampling, reference and update alike (RLOO)."""
    kl_coefficient: NonNegative = 0.03
    """Weight of the KL, k1 of the whole response, in the reward (RLOO); 0 needs no reference."""
