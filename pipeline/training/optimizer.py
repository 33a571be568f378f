"""The optimiser and its schedule, the same for every stage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import TrainingError
from pipeline.training.accelerator import TrainingAccelerator
from pipeline.training.schedule import schedule_factor
from pipeline.training.settings import TrainingSettings


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone: no bias, gain of a norm, or other vector."""
    return torch.optim.AdamW(
        _groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def build_adafactor(model: nn.Module, settings: TrainingSettings) -> torch.optim.Adafactor:
    """Return Adafactor (Shazeer and Stern 2018), which decays the same as AdamW does.

    A tensor's step is the learning rate times the root of its mean square (1e-3 at least), and
    no rate goes beyond one over the root of the steps done. In place of a second moment a weight
    it keeps one a row and one a column, and no first one.
    """
    return torch.optim.Adafactor(
        _groups(model, settings.weight_decay), lr=settings.learning_rate, foreach=False
    )


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_learning_rate(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, *, step: int, total: int
) -> float:
    """Set the learning rate of a step, counted from 0, and return it."""
    rate = settings.learning_rate * schedule_factor(
        step,
        total=total,
        warmup=round(settings.warmup_share * total),
        schedule=settings.schedule,
        final_share=settings.final_share,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def clip_gradients(
    accelerator: TrainingAccelerator,
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    loss: float,
    step: int,
) -> float:
    """Scale gradients down to a norm, and refuse those that are not finite.

    Called before the optimiser's step, so that the weights stay as they were; a loss that is not
    finite is refused as well.

    Returns:
        The norm before clipping; 0 where DeepSpeed, which clips by itself, knows none yet.

    Raises:
        TrainingError: loss or norm is NaN or infinite.
    """
    norm = float(accelerator.clip_grad_norm_(parameters, max_norm) or 0.0)
    if not math.isfinite(loss) or not math.isfinite(norm):
        what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient norm became {norm}"
        raise TrainingError(
            f"{what} at step {step}; lower the learning rate or look at the rows of that step, "
            "the last good checkpoint is kept"
        )
    return norm
