"""The learning rate over the steps of a stage: one rule for all of them."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def schedule_factor(
    step: int, *, total: int, warmup: int, schedule: Schedule, final_share: float
) -> float:
    """Return the share of the peak learning rate for a step, counted from 0.

    It rises linearly over the `warmup` steps, and reaches `final_share` with the last step.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    shape = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return final_share + (1 - final_share) * shape
