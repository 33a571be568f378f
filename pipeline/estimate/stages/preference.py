"""The estimate of the stages that learn from pairs: dpo and kto."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.estimate.model.costs import StageCost
from pipeline.estimate.model.estimator import Estimator, rows_of
from pipeline.estimate.model.flops import Rows, forward_flops, training_flops
from pipeline.estimate.model.memory import scored_bytes
from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.model.sources import Lengths
from pipeline.estimate.stages.reward_model import ranking_rows, referred_rankings
from pipeline.estimate.stages.training import (
    context_of,
    looks,
    shared_rows,
    training_phases,
)

if TYPE_CHECKING:
    from pipeline.stages.dpo.settings import PreferenceSettings


def estimate_preference(
    stage: str, settings: PreferenceSettings, estimator: Estimator
) -> StageCost:
    """Return the cost of a stage that learns from pairs: each answer once by policy and reference.

    TRL's head makes log-probabilities in pieces, twice where it learns: of the answers, on a
    processor of all positions. KTO's KL takes a further pass of both models.
    """
    cost = estimator.cost(stage)
    shape, bf16 = estimator.shape(settings.model, stage), estimator.bf16(settings.bf16)
    reference = estimator.shape(settings.reference or settings.model, stage)
    read = ranking_rows(stage, settings, estimator)
    limit = settings.max_length or context_of(estimator, settings.model) or math.inf
    lengths = read.whole(limit)
    widest = max(p + w for p, w in zip(read.prompts, read.widest, strict=True))
    longest = estimator.longest(stage, widest, limit)
    share = 0.0 if settings.heldout else settings.heldout_share
    pairs = max(1.0, read.completions * (read.completions - 1) / 2)
    learned = settings.epochs * read.rows * (1 - share) * pairs
    cost.steps = max(1, math.ceil(learned / settings.batch_size))
    mine = shared_rows(cost, settings.batch_size)
    micro = min(settings.micro_batch_size or mine, mine)
    scored = 1.0 if estimator.on_cpu else sum(read.answers) / max(1.0, sum(lengths))
    positions = 2 * micro * longest * scored
    cost.parameters = {stage: shape.parameters, "reference": reference.parameters}
    cost.phases = training_phases(
        shape,
        cost.layout,
        parameters=shape.parameters,
        rows=2 * micro,
        length=longest,
        logits=scored_bytes(shape, positions=positions, on_cpu=estimator.on_cpu, bf16=bf16),
        accumulating=micro < mine,
        bf16=bf16,
        checkpointed=settings.gradient_checkpointing,
        masked=True,
        frozen=cost.layout.share(reference.parameters),
    )
    rows = rows_of(lengths, 2 * cost.steps * settings.batch_size)
    passes = cost.steps * math.ceil(mine / micro)
    cost.compute(
        "training", shape, tokens=rows.tokens, passes=passes, bf16=bf16, training=True,
        flops=training_flops(
            shape, rows, positions=rows.tokens * scored,
            recompute=settings.gradient_checkpointing, recompute_logits=True,
        ),
    )  # fmt: skip
    if settings.kind == "kto":
        _add_forward(cost, (shape, reference), rows, scored, "KL", passes=passes, bf16=bf16)
    _add_forward(cost, (reference,), rows, scored, "reference", passes=passes, bf16=bf16)
    times = 1 + looks(cost.steps, settings.evaluate_every)
    judged = _judged(settings, estimator, read, stage) * pairs * times
    if judged:
        models = (shape, reference) * (2 if settings.kind == "kto" else 1)
        rows = rows_of(lengths, 2 * judged)
        passes = math.ceil(judged / micro)
        _add_forward(cost, models, rows, scored, "held-out rows", passes=passes, bf16=bf16)
    return cost


def _add_forward(
    cost: StageCost,
    models: tuple[ModelShape, ...],
    rows: Rows,
    scored: float,
    what: str,
    *,
    passes: int,
    bf16: bool,
) -> None:
    """Add a forward pass of each model over rows, of which a share of the tokens gets logits."""
    positions = rows.tokens * scored
    flops = sum(forward_flops(shape, rows, positions=positions) for shape in models)
    tokens, passes = rows.tokens * len(models), passes * len(models)
    cost.compute(what, models[0], flops=flops, tokens=tokens, passes=passes, bf16=bf16)


def _judged(settings: PreferenceSettings, estimator: Estimator, read: Lengths, stage: str) -> float:
    """Return the rankings that are judged by."""
    reference = settings.tokenizer or settings.model
    if settings.eval_rankings is not None:
        return referred_rankings(stage, settings.eval_rankings, estimator, reference).rows
    if settings.heldout:
        return estimator.lengths(stage, settings.heldout, reference, heldout=True).rows
    return read.rows * settings.heldout_share
