"""The estimate of the stages that sample groups of answers: grpo and rloo."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.estimate.model.costs import Phase, StageCost
from pipeline.estimate.model.estimator import Estimator, rows_of
from pipeline.estimate.model.flops import forward_flops, training_flops
from pipeline.estimate.model.memory import (
    BF16,
    FP32,
    cast_bytes,
    decoding_memory,
    scored_bytes,
)
from pipeline.estimate.stages.training import shared_rows, training_phases

if TYPE_CHECKING:
    from pipeline.estimate.model.shapes import ModelShape
    from pipeline.stages.grpo.settings import GroupSettings


def estimate_groups(stage: str, settings: GroupSettings, estimator: Estimator) -> StageCost:
    """Return the cost of sampling, scoring, and a step on each update's answers.

    TRL's head makes log-probabilities in pieces: of the answers, on a processor of all positions.
    RLOO takes a further pass of the policy, whose ratio is that of whole answers.
    """
    cost = estimator.cost(stage)
    policy, bf16 = estimator.shape(settings.policy, stage), estimator.bf16(settings.bf16)
    judges = estimator.judges(stage, settings.terms)
    reference = estimator.shape(settings.reference or settings.policy, stage)
    held = [reference] if settings.kl_coefficient else []
    read = estimator.lengths(stage, settings.prompts, settings.policy)
    limit = min(settings.max_prompt_tokens, settings.prefix_tokens or math.inf)
    asked = zip(read.prompts, read.answers or read.prompts, strict=False)
    prompts = [min(prompt or text, limit) for prompt, text in asked] or [float(limit)]
    longest = estimator.longest(stage, max(prompts), limit)
    new = estimator.response(stage, settings.max_new_tokens)
    mine = shared_rows(cost, settings.batch_size)
    micro = min(settings.micro_batch_size or mine, mine)
    cost.steps = settings.updates
    cost.parameters = {"policy": policy.parameters}
    if held:
        cost.parameters["reference"] = reference.parameters
    cost.parameters |= {f"reward model {name}": judge.scorer for name, judge in judges.items()}
    cost.phases = _phases(
        cost, settings, policy, rows=micro, mine=mine, prompt=round(longest), bf16=bf16,
        frozen=float(sum(cost.parameters.values()) - policy.parameters),
        share=1.0 if estimator.on_cpu else new / (new + sum(prompts) / len(prompts)),
        on_cpu=estimator.on_cpu,
    )  # fmt: skip
    rows = rows_of([p + new for p in prompts], settings.batch_size * settings.updates)
    positions = rows.tokens if estimator.on_cpu else rows.count * new
    cost.decode(
        "sampling", policy, rows=rows.count, answers=settings.group_size, bf16=bf16,
        batch=min(settings.generation_batch_size, mine), prompt=sum(prompts) / len(prompts),
        new=new, steps=settings.max_new_tokens,
    )  # fmt: skip
    passes = settings.updates * math.ceil(mine / micro)
    looks = [("scoring", judge, 0.0, False) for judge in judges.values()]
    looks += [("log-probabilities", shape, positions, bf16) for shape in held]
    if settings.kind == "rloo":
        looks.append(("log-probabilities", policy, positions, bf16))
    for name, shape, made, half in looks:
        flops = forward_flops(shape, rows, positions=made)
        cost.compute(name, shape, flops=flops, tokens=rows.tokens, passes=passes, bf16=half)
    flops = training_flops(
        policy, rows, positions=positions, recompute=settings.gradient_checkpointing,
        recompute_logits=True,
    )  # fmt: skip
    cost.compute(
        "training the policy", policy, flops=flops, tokens=rows.tokens, passes=passes, bf16=bf16,
        training=True,
    )  # fmt: skip
    if settings.evaluate_every:
        scorers = [*judges.values(), *estimator.judges(stage, settings.evaluation_terms).values()]
        _add_evaluation(cost, settings, policy, scorers, estimator, new=new, limit=limit)
    return cost


def _add_evaluation(
    cost: StageCost,
    settings: GroupSettings,
    policy: ModelShape,
    scorers: list[ModelShape],
    estimator: Estimator,
    *,
    new: float,
    limit: float,
) -> None:
    """Add the evaluations on held-out prompts: sampling, and the judges."""
    read = estimator.lengths(cost.stage, settings.evaluation_prompts, settings.policy, heldout=True)
    asked = zip(read.prompts, read.answers or read.prompts, strict=False)
    prompts = [min(prompt or text, limit) for prompt, text in asked] or [limit]
    times = math.ceil(settings.updates / settings.evaluate_every)
    rows = rows_of([prompt + new for prompt in prompts], read.rows * times)
    mine = math.ceil(read.rows / cost.layout.processes)
    cost.decode(
        "evaluations: sampling", policy, rows=rows.count, bf16=estimator.bf16(settings.bf16),
        batch=min(settings.generation_batch_size, mine), prompt=sum(prompts) / len(prompts),
        new=new, steps=settings.max_new_tokens,
    )  # fmt: skip
    for scorer in scorers:
        cost.compute(
            "evaluations: judging", scorer, flops=forward_flops(scorer, rows, positions=0.0),
            tokens=rows.tokens, passes=times * math.ceil(mine / 64), bf16=False,
        )  # fmt: skip


def _phases(
    cost: StageCost,
    settings: GroupSettings,
    policy: ModelShape,
    *,
    rows: int,
    mine: int,
    prompt: int,
    frozen: float,
    share: float,
    on_cpu: bool,
    bf16: bool,
) -> list[Phase]:
    """Return the memory of a step and of sampling, all models being there the whole time."""
    length = prompt + settings.max_new_tokens
    phases = training_phases(
        policy,
        cost.layout,
        parameters=policy.parameters,
        rows=rows,
        length=length,
        logits=scored_bytes(policy, positions=rows * length * share, on_cpu=on_cpu, bf16=bf16),
        accumulating=rows < mine,
        bf16=bf16,
        checkpointed=settings.gradient_checkpointing,
        masked=True,
        frozen=frozen,
    )
    width = BF16 if bf16 else FP32
    sampling = decoding_memory(
        policy, responses=mine, batch=settings.generation_batch_size, prompt=prompt,
        new=settings.max_new_tokens, key=FP32 if policy.rotary else width, value=width,
        bf16=bf16, answers=settings.group_size,
    )  # fmt: skip
    resident = {name: phases[0].components[name] for name in ("weights", "Adam")}
    casts = cast_bytes(policy, bf16=bf16)
    return [Phase("sampling", {**resident, "bf16 copies": casts, **sampling}), *phases]
