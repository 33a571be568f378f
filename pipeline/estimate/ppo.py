"""The estimate of the ppo stage: policy, value model, reference and reward models at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.estimate.costs import Phase, StageCost
from pipeline.estimate.desk import Desk, rows_of
from pipeline.estimate.flops import Rows, forward_flops, training_flops
from pipeline.estimate.memory import (
    ADAM,
    BF16,
    FP32,
    LOGITS_IN_POLICY,
    LOGITS_LOOKED_AT,
    activation_bytes,
    cast_bytes,
    gathered_bytes,
    logit_bytes,
    working_bytes,
)
from pipeline.estimate.sampling import decoding_memory
from pipeline.estimate.shapes import ModelShape
from pipeline.estimate.training import LOGITS_AT_ONCE

if TYPE_CHECKING:
    from pipeline.stages.ppo import PpoSettings


@dataclass(frozen=True)
class Actors:
    """The models of a run; those that are not there are None.

    Attributes:
        policy: what is trained.
        value: a separate value model.
        reference: what it is held near.
        judges: reward models.
    """

    policy: ModelShape
    value: ModelShape | None
    reference: ModelShape
    judges: list[ModelShape]

    @property
    def trained(self) -> float:
        """Parameters with gradients and Adam's moments."""
        own = self.policy.parameters + (self.policy.hidden + 1 if self.value is None else 0)
        return own + (0 if self.value is None else self.value.trunk + self.value.hidden + 1)


@dataclass(frozen=True)
class Work:
    """The rows of an update.

    Attributes:
        mine: episodes of one process.
        micro: of one backward pass.
        accumulating: whether an optimiser's step takes several.
        prompt: tokens of the longest prompt.
        prompt_mean: mean tokens of a prompt.
        new: mean tokens of a response.
        most: most tokens of a response.
        rows: all episodes of an update, on all processes.
    """

    mine: int
    micro: int
    accumulating: bool
    prompt: int
    prompt_mean: float
    new: float
    most: int
    rows: Rows


def estimate_ppo(stage: str, settings: PpoSettings, desk: Desk) -> StageCost:
    """Return the cost of a ppo stage."""
    cost = StageCost(stage, settings.kind, desk.layout(stage))
    actors = _actors(stage, settings, desk)
    work = _work(cost, settings, desk)
    bf16 = desk.bf16(settings.bf16)
    cost.steps = settings.updates * settings.epochs * settings.minibatches
    cost.parameters = _parameters(settings, actors)
    cost.phases = _phases(cost, settings, actors, work, bf16=bf16)
    _add_sampling(cost, settings, desk, actors, work, bf16=bf16)
    _add_optimisation(cost, settings, desk, actors, work, bf16=bf16)
    return cost


def _actors(stage: str, settings: PpoSettings, desk: Desk) -> Actors:
    policy = desk.shape(settings.policy, stage)
    judges = [
        desk.shape(term.model, stage) for term in settings.terms.values() if term.model is not None
    ]
    value = None
    if settings.value == "separate":
        start = settings.value_start
        value = desk.shape(start, stage) if start else (judges[0] if judges else policy)
        if value.vocabulary != policy.vocabulary:
            value = policy  # another tokenizer: it starts from the policy instead
    reference = desk.shape(settings.reference, stage) if settings.reference else policy
    return Actors(policy, value, reference, judges)


def _parameters(settings: PpoSettings, actors: Actors) -> dict[str, int]:
    found = {"policy": actors.policy.parameters, "reference": actors.reference.parameters}
    if actors.value is not None:
        found["value model"] = actors.value.trunk + actors.value.hidden + 1
    names = [term.model for term in settings.terms.values() if term.model is not None]
    for name, judge in zip(names, actors.judges, strict=True):
        found[f"reward model {name}"] = judge.trunk + judge.hidden
    return found


def _work(cost: StageCost, settings: PpoSettings, desk: Desk) -> Work:
    stage, processes = cost.stage, cost.layout.processes
    read = desk.lengths(stage, settings.prompts, settings.policy)
    limit = min(settings.max_prompt_tokens, settings.prefix_tokens or math.inf)
    prompts = [p or a for p, a in zip(read.prompts, read.answers or read.prompts, strict=False)]
    if settings.prefix_tokens is not None:
        prompts = [min(p, limit) for p in prompts]
    prompts = [p for p in prompts if p <= limit] or [float(limit)]
    share = processes * settings.minibatches
    if settings.batch_size % share:
        cost.problems.append(
            f"batch_size {settings.batch_size} does not divide by {processes} processes times "
            f"{settings.minibatches} minibatches: make it a multiple of {share}"
        )
    mine = max(1, math.ceil(settings.batch_size / processes))
    minibatch = max(1, math.ceil(mine / settings.minibatches))
    new = desk.response(stage, settings.max_new_tokens)
    return Work(
        mine=mine,
        micro=min(settings.micro_batch_size, minibatch),
        accumulating=minibatch > settings.micro_batch_size,
        prompt=desk.longest(stage, max(prompts), limit),
        prompt_mean=sum(prompts) / len(prompts),
        new=new,
        most=settings.max_new_tokens,
        rows=rows_of([p + new for p in prompts], settings.batch_size),
    )


def _phases(
    cost: StageCost, settings: PpoSettings, actors: Actors, work: Work, *, bf16: bool
) -> list[Phase]:
    """Return the memory of sampling, scoring, looking and optimising.

    All models stay where they are the whole time. Under autocast keys with rotary positions are
    cached in fp32, since cosines are fp32, values in bf16.
    """
    policy, layout = actors.policy, cost.layout
    kept = _kept(settings, actors, cost)
    casts = cast_bytes(policy, bf16=bf16) if layout.sharding != "fsdp2" else 0.0
    width = BF16 if bf16 else FP32
    sampling = decoding_memory(
        policy,
        rows=min(settings.generation_batch_size, work.mine),
        prompt=work.prompt,
        new=work.most,
        key=FP32 if policy.rotary else width,
        value=width,
        bf16=bf16,
    )
    phases = [Phase("sampling", {**kept, "bf16 copies": casts, **sampling})]
    rows = min(settings.score_batch_size, work.mine)
    length = work.prompt + work.most
    if actors.judges:
        widest = max(
            working_bytes(judge, tokens=rows * length, bf16=False) for judge in actors.judges
        )
        phases.append(Phase("scoring", {**kept, "activations": widest}))
    looked_at = min(rows * work.most, LOGITS_AT_ONCE / policy.vocabulary)
    looking = {
        "activations": working_bytes(policy, tokens=rows * length, bf16=bf16),
        "bf16 copies": casts,
        "logits": logit_bytes(policy, positions=looked_at, copies=LOGITS_LOOKED_AT),
    }
    phases.append(Phase("log-probabilities", {**kept, **looking}))
    return phases + _optimising(cost, settings, actors, work, kept, bf16=bf16)


def _kept(settings: PpoSettings, actors: Actors, cost: StageCost) -> dict[str, float]:
    """Return what is there the whole time: four models or more, and Adam's moments."""
    layout, policy = cost.layout, actors.policy
    own = policy.parameters + (policy.hidden + 1 if actors.value is None else 0)
    kept = {
        "weights": FP32 * layout.share(own),
        "Adam": ADAM * layout.share(actors.trained),
        "reference": float(FP32 * actors.reference.parameters),
    }
    if actors.value is not None:
        kept["value model"] = FP32 * layout.share(actors.trained - own)
    if actors.judges:
        kept["reward model"] = float(FP32 * sum(j.trunk + j.hidden for j in actors.judges))
    if settings.ema_decay is not None:
        kept["average"] = FP32 * layout.share(own)
    return kept


def _optimising(
    cost: StageCost,
    settings: PpoSettings,
    actors: Actors,
    work: Work,
    kept: dict[str, float],
    *,
    bf16: bool,
) -> list[Phase]:
    """Return the memory where the backward pass begins and where it ends."""
    policy, layout = actors.policy, cost.layout
    length = work.prompt + work.most
    models = [policy, *([actors.value] if actors.value is not None else [])]
    activations = sum(
        activation_bytes(
            model,
            rows=work.micro,
            length=length,
            bf16=bf16,
            checkpointed=settings.gradient_checkpointing,
        )
        for model in models
    )
    positions = min(work.micro * work.most, LOGITS_AT_ONCE / policy.vocabulary)
    gradients = layout.gradients(actors.trained)
    buckets = gradients - FP32 * layout.share(actors.trained)
    early = gradients if work.accumulating else buckets + FP32 * layout.share(policy.head)
    begins = {
        **kept,
        "gradients": early,
        "activations": activations,
        "bf16 copies": 0.0,
        "logits": logit_bytes(policy, positions=positions, copies=LOGITS_IN_POLICY),
    }
    if layout.sharding == "fsdp2":
        begins["gathered weights"] = sum(gathered_bytes(model, bf16=bf16) for model in models)
    else:
        begins["bf16 copies"] = sum(
            cast_bytes(model, bf16=bf16, head=model is policy) for model in models
        )
    ends = {
        **kept,
        "gradients": gradients,
        "activations": working_bytes(policy, tokens=work.micro * length, bf16=bf16),
    }
    if settings.ptx_coefficient > 0:
        ends["gradients"] += FP32 * layout.share(policy.parameters)  # to compare the two norms
    return [Phase("backward begins", begins), Phase("backward ends", ends)]


def _add_sampling(
    cost: StageCost, settings: PpoSettings, desk: Desk, actors: Actors, work: Work, *, bf16: bool
) -> None:
    """Add roll-out, scores (in fp32), and log-probabilities and values without gradients."""
    updates, layout = settings.updates, cost.layout
    rows = work.rows.times(updates)
    positions = rows.count * work.new
    cost.parts.append(
        desk.decode(
            "sampling",
            actors.policy,
            layout,
            rows=rows.count,
            batch=min(settings.generation_batch_size, work.mine),
            prompt=work.prompt_mean,
            new=work.new,
            steps=work.most,
            bf16=bf16,
        )
    )
    passes = updates * math.ceil(work.mine / settings.score_batch_size)
    looks = [("scoring", judge, 0.0, False) for judge in actors.judges]
    looks += [("log-probabilities", m, positions, bf16) for m in (actors.policy, actors.reference)]
    if actors.value is not None:
        looks.append(("values", actors.value, 0.0, bf16))
    for name, model, made, half in looks:
        flops = forward_flops(model, rows, positions=made)
        cost.parts.append(
            desk.compute(
                name, model, layout, flops=flops, tokens=rows.tokens, passes=passes, bf16=half
            )
        )


def _add_optimisation(
    cost: StageCost, settings: PpoSettings, desk: Desk, actors: Actors, work: Work, *, bf16: bool
) -> None:
    """Add the epochs over the episodes, and the rows of PPO-ptx.

    The policy is not trained while the value model warms up, but still looked at.
    """
    again = settings.gradient_checkpointing
    warm = min(settings.value_warmup_updates, settings.updates)
    rows = work.rows.times(settings.updates * settings.epochs)
    made = rows.count * work.new
    pieces = work.micro * work.new * actors.policy.vocabulary > LOGITS_AT_ONCE
    whole = training_flops(
        actors.policy, rows, positions=made, recompute=again, recompute_logits=pieces
    )
    once = forward_flops(actors.policy, rows, positions=made)
    cold = warm / settings.updates if actors.value is not None else 0.0
    policy = (1 - cold) * whole + cold * once
    minibatch = math.ceil(work.mine / settings.minibatches)
    passes = settings.updates * settings.epochs * settings.minibatches
    passes *= math.ceil(minibatch / work.micro)
    flops = {"training the policy": (actors.policy, policy)}
    if actors.value is not None:
        value = training_flops(actors.value, rows, positions=0, recompute=again)
        flops["training the value model"] = (actors.value, value)
    if settings.ptx_coefficient > 0:
        count = settings.ptx_rows_per_episode * rows.count
        extra = Rows.alike(count, settings.pretraining_row_tokens)
        flops["pretraining rows"] = (
            actors.policy,
            training_flops(actors.policy, extra, positions=extra.tokens, recompute=again),
        )
    for name, (model, work_done) in flops.items():
        cost.parts.append(
            desk.compute(
                name, model, cost.layout, flops=work_done, tokens=rows.tokens, passes=passes,
                bf16=bf16, training=True,
            )
        )  # fmt: skip
