"""Estimate of the stage that puts calls of tools into text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.estimate.model.costs import Phase, StageCost
from pipeline.estimate.model.estimator import Estimator, rows_of
from pipeline.estimate.model.flops import Rows, forward_flops
from pipeline.estimate.model.memory import BF16, FP32, decoding_memory
from pipeline.stages.tool_annotate.settings import CHUNK

if TYPE_CHECKING:
    from pipeline.stages.tool_annotate.settings import ToolAnnotateSettings


def estimate_tool_annotate(
    stage: str, settings: ToolAnnotateSettings, estimator: Estimator
) -> StageCost:
    """Return the cost of looking for places, writing calls there, and judging each of them."""
    cost, bf16 = estimator.cost(stage), estimator.bf16(settings.bf16)
    names = {settings.caller or settings.model, settings.model}
    shapes = {name: estimator.shape(name, stage) for name in names}
    caller, judge = shapes[settings.caller or settings.model], shapes[settings.model]
    read = estimator.lengths(stage, settings.train, settings.model)
    texts = rows_of(read.whole(), min(read.rows, settings.limit or math.inf))
    places = texts.count * settings.places
    calls, length = places * settings.calls, texts.tokens / texts.count
    cost.parameters = {name: shape.parameters for name, shape in shapes.items()}
    width = BF16 if bf16 else FP32
    memory = decoding_memory(
        caller, responses=min(calls, CHUNK * settings.places * settings.calls),
        batch=settings.batch_size, prompt=estimator.longest(stage, max(read.whole()), math.inf),
        new=settings.max_call_tokens, key=width, value=width, bf16=bf16,
    )  # fmt: skip
    weights = float(width * sum(cost.parameters.values()))
    cost.phases = [Phase("calls", {"weights": weights, **memory})]
    cost.compute(
        "places", caller, flops=forward_flops(caller, texts, positions=texts.tokens),
        tokens=texts.tokens, passes=texts.count / settings.batch_size, bf16=bf16,
    )  # fmt: skip
    cost.decode(
        "calls", caller, rows=calls, batch=settings.batch_size, prompt=length / 2,
        new=estimator.response(stage, settings.max_call_tokens), steps=settings.max_call_tokens,
        bf16=bf16,
    )  # fmt: skip
    # Of each call what follows with its result and without, and once a place without any.
    judged = Rows.alike(places + 2 * calls, length / 2 + settings.max_call_tokens)
    cost.compute(
        "judging", judge, flops=forward_flops(judge, judged, positions=5 * judged.count),
        tokens=judged.tokens, passes=judged.count / settings.batch_size, bf16=bf16,
    )  # fmt: skip
    return cost
