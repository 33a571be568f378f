"""The estimate of the ppo stage: policy, value model, reference and reward models at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.contract.settings import Lora
from pipeline.estimate.model.costs import StageCost
from pipeline.estimate.model.estimator import Estimator, rows_of
from pipeline.estimate.model.flops import Rows, forward_flops, training_flops
from pipeline.estimate.stages.ppo_memory import Actors, Work, ppo_phases
from pipeline.estimate.stages.training import LOGITS_AT_ONCE

if TYPE_CHECKING:
    from pipeline.stages.ppo.settings import PpoSettings


def estimate_ppo(stage: str, settings: PpoSettings, estimator: Estimator) -> StageCost:
    """Return the cost of a ppo stage."""
    cost = estimator.cost(stage)
    actors = _actors(stage, settings, estimator)
    work = _work(cost, settings, estimator)
    bf16 = estimator.bf16(settings.bf16)
    cost.steps = settings.updates * settings.epochs * settings.minibatches
    cost.parameters = _parameters(actors)
    cost.phases = ppo_phases(cost, settings, actors, work, bf16=bf16, on_cpu=estimator.on_cpu)
    _add_sampling(cost, settings, actors, work, bf16=bf16)
    _add_optimisation(cost, settings, actors, work, bf16=bf16)
    if settings.evaluate_every:
        _add_evaluation(cost, settings, actors, work, estimator)
    if settings.rollout.engine != "own":
        cost.phases = [phase for phase in cost.phases if phase.name != "sampling"]
        estimator.assumed.tell(
            stage, "a server samples: its memory is not counted, its time as the own sampler's"
        )
    return cost


def _actors(stage: str, settings: PpoSettings, estimator: Estimator) -> Actors:
    policy = estimator.shape(settings.policy, stage)
    judges = estimator.judges(stage, settings.terms)
    second = estimator.judges(stage, settings.evaluation_terms)
    reference = estimator.shape(settings.reference, stage) if settings.reference else policy
    if settings.trunk == "shared":
        stages = estimator.recipe.stages
        adapters = {name: getattr(stages.get(name), "lora", None) for name in judges}
        ranks = {name: lora.rank for name, lora in adapters.items() if lora is not None}
        return Actors(
            policy,
            None,
            reference,
            judges,
            attached=frozenset(ranks),
            rank=(settings.lora or Lora()).rank,
            judge_rank=max(ranks.values(), default=16),
            second=second,
        )
    value = None
    if settings.value == "separate":
        start = settings.value_start
        value = estimator.shape(start, stage) if start else next(iter(judges.values()), policy)
        if policy.decoder_layers and not start:
            value = policy  # with a head on its decoder
        if value.vocabulary != policy.vocabulary:
            value = policy  # another tokenizer: it starts from the policy instead
    return Actors(policy, value, reference, judges, second=second)


def _parameters(actors: Actors) -> dict[str, int]:
    parameters = {"policy": actors.policy.parameters}
    if actors.rank is not None:
        parameters["adapter of the policy"] = int(actors.on_policy)
    else:
        parameters["reference"] = actors.reference.parameters
    if actors.value is not None:
        parameters["value model"] = int(actors.on_value)
    for name in actors.judges:
        parameters[f"reward model {name}"] = actors.judge_parameters(name)
    for name, judge in actors.second.items():
        parameters[f"second judge {name}"] = judge.scorer
    return parameters


def _work(cost: StageCost, settings: PpoSettings, estimator: Estimator) -> Work:
    stage, processes = cost.stage, cost.layout.processes
    read = estimator.prompts(stage, settings.prompts, settings.policy, settings.tools)
    limit = min(settings.max_prompt_tokens, settings.prefix_tokens or math.inf)
    prompts = [p or a for p, a in zip(read.prompts, read.answers or read.prompts, strict=False)]
    if settings.prefix_tokens is not None:
        prompts = [min(p, limit) for p in prompts]
    room = min(limit + settings.passage_tokens, settings.max_prompt_tokens)
    prompts = [min(p + settings.passage_tokens, room) for p in prompts if p <= limit] or [room]
    share = processes * settings.minibatches
    if settings.batch_size % share:
        cost.problems.append(
            f"batch_size {settings.batch_size} does not divide by {processes} processes times "
            f"{settings.minibatches} minibatches: make it a multiple of {share}"
        )
    mine = max(1, math.ceil(settings.batch_size / processes))
    minibatch = max(1, math.ceil(mine / settings.minibatches))
    new = estimator.response(stage, settings.max_new_tokens)
    longest = estimator.longest(stage, max(prompts), room)
    micro, scored = (
        each.rows_of(longest + settings.max_new_tokens)
        for each in (settings.update_limit, settings.score_limit)
    )
    return Work(
        mine=mine,
        micro=min(micro, minibatch),
        scored=min(scored, mine),
        accumulating=minibatch > micro,
        prompt=longest,
        prompt_mean=sum(prompts) / len(prompts),
        new=new,
        most=settings.max_new_tokens,
        rows=rows_of([p + new for p in prompts], settings.batch_size),
    )


def _add_sampling(
    cost: StageCost,
    settings: PpoSettings,
    actors: Actors,
    work: Work,
    *,
    bf16: bool,
) -> None:
    """Add roll-out, scores, and log-probabilities and values without gradients.

    Scores are in fp32 but where values come with them: from a reward model's adapter on the trunk.
    """
    updates = settings.updates
    rows = work.rows.times(updates)
    positions = rows.count * work.new
    cost.decode(
        "sampling",
        actors.policy,
        rows=rows.count,
        batch=min(settings.generation_batch_size, work.mine),
        prompt=work.prompt_mean,
        new=work.new,
        steps=work.most,
        bf16=bf16,
    )
    passes = updates * math.ceil(work.mine / settings.score_limit.rows_of(work.mean))
    attached = [name for name in actors.judges if name in actors.attached]
    read = attached[0] if attached and settings.value == "reward" else None
    looks = [
        ("scores and values", actors.policy, 0.0, bf16)
        if name == read
        else ("scoring", judge, 0.0, False)
        for name, judge in actors.judges.items()
    ]
    looks += [("log-probabilities", m, positions, bf16) for m in (actors.policy, actors.reference)]
    if actors.value is not None:
        looks.append(("values", actors.value, 0.0, bf16))
    for name, model, made, half in looks:
        flops = forward_flops(model, rows, positions=made)
        cost.compute(name, model, flops=flops, tokens=rows.tokens, passes=passes, bf16=half)


def _add_evaluation(
    cost: StageCost, settings: PpoSettings, actors: Actors, work: Work, estimator: Estimator
) -> None:
    """Add the evaluations on held-out prompts: sampling, judges, policy and reference."""
    prompts = settings.evaluation_prompts
    read = estimator.prompts(cost.stage, prompts, settings.policy, settings.tools, heldout=True)
    limit = min(settings.max_prompt_tokens, settings.prefix_tokens or math.inf)
    # A conversation or a text asks by what it begins with.
    asked = [
        min(min(p or a, limit) + settings.passage_tokens, settings.max_prompt_tokens)
        for p, a in zip(read.prompts, read.answers or read.prompts, strict=False)
    ]
    times = 1 + math.ceil(settings.updates / settings.evaluate_every)
    rows = rows_of([p + work.new for p in asked], read.rows).times(times)
    mine = math.ceil(read.rows / cost.layout.processes)
    bf16 = estimator.bf16(settings.bf16)
    cost.decode(
        "evaluations: sampling", actors.policy, rows=rows.count,
        batch=min(settings.generation_batch_size, mine), prompt=sum(asked) / len(asked),
        new=work.new, steps=work.most, bf16=bf16,
    )  # fmt: skip
    passes = times * math.ceil(mine / settings.score_limit.rows_of(rows.tokens / rows.count))
    looks = [(judge, 0.0, False) for judge in (*actors.judges.values(), *actors.second.values())]
    looks += [(m, rows.count * work.new, bf16) for m in (actors.policy, actors.reference)]
    for model, made, half in looks:
        flops = forward_flops(model, rows, positions=made)
        cost.compute(
            "evaluations: judging", model, flops=flops, tokens=rows.tokens, passes=passes, bf16=half
        )


def _add_optimisation(
    cost: StageCost,
    settings: PpoSettings,
    actors: Actors,
    work: Work,
    *,
    bf16: bool,
) -> None:
    """Add the epochs over the episodes, and the rows of PPO-ptx.

    The policy is not trained while the value model warms up, but still looked at.
    """
    again = settings.gradient_checkpointing
    warm = min(settings.value_warmup_updates, settings.updates)
    rows = work.rows.times(settings.updates * settings.epochs)
    made = rows.count * work.new
    pieces = work.micro * work.new * actors.policy.vocabulary > LOGITS_AT_ONCE
    trained = training_flops(
        actors.policy,
        rows,
        positions=made,
        recompute=again,
        recompute_logits=pieces,
        trained_share=1.0 if actors.rank is None else 0.0,
    )
    once = forward_flops(actors.policy, rows, positions=made)
    cold = warm / settings.updates if actors.value is not None else 0.0
    policy = (1 - cold) * trained + cold * once
    minibatch = math.ceil(work.mine / settings.minibatches)
    passes = settings.updates * settings.epochs * settings.minibatches
    passes *= math.ceil(minibatch / settings.update_limit.rows_of(work.mean))
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
        cost.compute(
            name,
            model,
            flops=work_done,
            tokens=rows.tokens,
            passes=passes,
            bf16=bf16,
            training=True,
        )
