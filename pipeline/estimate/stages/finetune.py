"""The estimate of the finetune stage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.estimate.model.assumptions import SIDE_TOKENS
from pipeline.estimate.model.costs import StageCost
from pipeline.estimate.model.estimator import Estimator
from pipeline.estimate.model.flops import Rows, training_flops
from pipeline.estimate.model.sources import Lengths
from pipeline.estimate.stages.training import (
    add_evaluation,
    context_of,
    looks,
    shared_rows,
    training_phases,
)
from pipeline.stages.finetune.settings import LONGEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.stages.finetune.settings import FinetuneSettings

FRAME = 3
"""Control tokens around a text, or two."""


def estimate_finetune(stage: str, settings: FinetuneSettings, estimator: Estimator) -> StageCost:
    """Return the cost of a finetune stage: rows, or windows of them, padded to a batch's longest.

    Of an encoder-decoder both halves read a row.
    """
    cost = estimator.cost(stage)
    shape, bf16 = estimator.shape(settings.model, stage), estimator.bf16(settings.bf16)
    reference = settings.tokenizer or settings.model
    limit = settings.max_length or min(LONGEST, context_of(estimator, settings.model) or LONGEST)
    read = estimator.lengths(stage, settings.read_as(settings.train), reference)
    lengths, windows = _windows(settings, read, limit)
    share = 0.0 if settings.heldout else settings.heldout_share
    count = read.rows * (1 - share) * windows
    mine = shared_rows(cost, settings.batch_size)
    micro = min(settings.micro_batch_size or mine, mine)
    cost.steps = settings.total_steps(count)
    cost.parameters = {stage: shape.scorer}
    cost.phases = training_phases(
        shape,
        cost.layout,
        parameters=shape.scorer,
        rows=micro,
        length=estimator.longest(stage, max(lengths), limit),
        logits=0.0,
        accumulating=micro < mine,
        bf16=bf16,
        checkpointed=settings.gradient_checkpointing,
        masked=micro > 1,
        head=False,
    )
    rows = Rows.alike(cost.steps * settings.batch_size, _longest_of(lengths, mine))
    cost.compute(
        "training",
        shape,
        flops=training_flops(shape, rows, positions=0, recompute=settings.gradient_checkpointing),
        tokens=rows.tokens,
        passes=cost.steps * math.ceil(mine / micro),
        bf16=bf16,
        training=True,
    )
    held = read.rows * share
    if settings.heldout:
        sources = settings.read_as(settings.heldout)
        apart = estimator.lengths(stage, sources, reference, heldout=True)
        lengths, windows = _windows(settings, apart, limit)
        held = apart.rows
    judged = (1 + looks(cost.steps, settings.evaluate_every)) * held * windows
    of_like_length = Rows.alike(judged, sum(lengths) / len(lengths))
    add_evaluation(cost, shape, of_like_length, positions=0, at_once=micro, bf16=bf16)
    return cost


def _windows(settings: FinetuneSettings, read: Lengths, limit: int) -> tuple[list[float], float]:
    """Return the tokens of measured rows, cut at a limit, and how many windows a row has."""
    # No turns: a text has a frame of its own in place of what a chat template puts around.
    whole = [length - SIDE_TOKENS + FRAME for length in read.whole()] or [float(limit)]
    cut = [min(length, limit) for length in whole]
    if settings.head == "classify":
        return cut, 1.0
    stride = 0
    if settings.head == "span":
        stride = limit // 4 if settings.stride is None else settings.stride
    # Each further window has the question and the frame again, and shares the stride.
    fresh = max(1.0, limit - stride - FRAME - read.prompt_mean)
    more = sum(math.ceil(max(0.0, length - limit) / fresh) for length in whole)
    return cut, 1 + more / len(whole)


def _longest_of(lengths: Sequence[float], rows: int) -> float:
    """Return the mean length of the longest of so many rows that are drawn."""
    order, count = sorted(lengths), len(lengths)
    below = [(place / count) ** rows for place in range(count + 1)]
    return sum(
        length * (after - before)
        for length, before, after in zip(order, below, below[1:], strict=False)
    )
