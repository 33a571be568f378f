"""Estimates of the stages that sample and judge: rankings, select, evaluate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.contract.settings import rows_at_most
from pipeline.estimate.model.costs import Phase, StageCost
from pipeline.estimate.model.estimator import Estimator, rows_of
from pipeline.estimate.model.flops import Rows, forward_flops
from pipeline.estimate.model.memory import (
    BF16,
    FP32,
    cast_bytes,
    decoding_memory,
)
from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.model.sources import Lengths
from pipeline.estimate.stages.tasks import Asking, asked_by
from pipeline.models.batches import MOST_LOGITS
from pipeline.stages.rankings.settings import CHUNK
from pipeline.stages.select.settings import MAX_PROMPTS

if TYPE_CHECKING:
    from pipeline.stages.evaluate.settings import EvaluateSettings
    from pipeline.stages.rankings.settings import RankingsSettings
    from pipeline.stages.select.settings import SelectSettings

    _Samples = RankingsSettings | SelectSettings | EvaluateSettings


def _sampling_memory(
    shape: ModelShape,
    settings: _Samples,
    *,
    responses: float,
    prompt: int,
    bf16: bool,
    on_cpu: bool,
    answers: int = 1,
) -> dict[str, float]:
    """Return the bytes of a stage's sampling beside the weights, the model being in its type."""
    width = BF16 if bf16 else FP32
    memory = decoding_memory(
        shape,
        responses=responses,
        batch=settings.batch_size,
        prompt=prompt,
        new=settings.max_new_tokens,
        key=width,
        value=width,
        bf16=bf16,
        answers=answers,
    )
    if bf16 and on_cpu:
        from pipeline.generation.packed_weights import LEAST_STEPS, MOST_BYTES

        steps = settings.max_new_tokens * math.ceil(responses / settings.batch_size)
        packed = cast_bytes(shape, bf16=True)
        if steps >= LEAST_STEPS and packed <= MOST_BYTES:
            memory["packed weights"] = packed
    return memory


def ranked_prompts(name: str, estimator: Estimator, reference: str, *, asked_by: str) -> Lengths:
    """Return the rows that a rankings stage leaves: its prompts with K answers each.

    Args:
        name: the stage.
        estimator: what the estimate is made with.
        reference: whose tokens count.
        asked_by: stage that reads the rankings, for the notes.
    """
    settings: Any = estimator.recipe.stages[name]
    if settings.labeler == "file":
        read = estimator.lengths(asked_by, settings.rankings, reference)
    else:
        read = estimator.lengths(asked_by, settings.prompts, reference)
        answer = estimator.assumed.get(name, "response_tokens") or settings.max_new_tokens
        answer = estimator.assumed.get(asked_by, "answer_tokens") or answer
        estimator.assumed.tell(asked_by, f"answers of {name} have {answer:g} tokens")
        answers = [float(answer)] * len(read.prompts)
        read = Lengths(read.rows, read.prompts, answers, answers, settings.completions)
        read = read.behind(settings.passage_tokens)
    if settings.limit is not None:
        read.rows = min(read.rows, settings.limit)
    return read


def estimate_rankings(stage: str, settings: RankingsSettings, estimator: Estimator) -> StageCost:
    """Return the cost of sampling K completions of each prompt; that of copying is nothing."""
    cost = estimator.cost(stage)
    if settings.model is None:
        return cost
    shape, bf16 = estimator.shape(settings.model, stage), estimator.bf16(settings.bf16)
    read = estimator.prompts(stage, settings.prompts, settings.model, settings.tools)
    read = read.behind(settings.passage_tokens)
    prompts = min(read.rows, settings.limit or math.inf)
    longest = estimator.longest(stage, max(read.prompts), math.inf)
    width = BF16 if bf16 else FP32
    cost.parameters = {settings.model: shape.parameters}
    memory = _sampling_memory(
        shape, settings, responses=min(prompts, CHUNK) * settings.completions, prompt=longest,
        bf16=bf16, on_cpu=estimator.on_cpu, answers=settings.completions,
    )  # fmt: skip
    cost.phases = [Phase("sampling", {"weights": width * shape.parameters, **memory})]
    cost.decode(
        "sampling",
        shape,
        rows=prompts * settings.completions,
        answers=settings.completions,
        batch=settings.batch_size,
        prompt=read.prompt_mean,
        new=estimator.response(stage, settings.max_new_tokens),
        steps=settings.max_new_tokens,
        bf16=bf16,
    )
    return cost


def estimate_select(stage: str, settings: SelectSettings, estimator: Estimator) -> StageCost:
    """Return the cost of sampling from each candidate and scoring what it says, in fp32."""
    cost = estimator.cost(stage)
    shape = estimator.shape(settings.model, stage)
    judges = estimator.judges(stage, settings.terms)
    candidates = getattr(estimator.recipe.stages.get(settings.model), "candidates", None)
    if candidates is None:
        candidates = 2
        estimator.assumed.tell(stage, f"{settings.model} is taken to hold 2 candidates")
    read = estimator.prompts(stage, settings.prompts, settings.model, settings.tools)
    read = read.behind(settings.passage_tokens)
    prompts = min(read.rows, rows_at_most(settings.prompts, MAX_PROMPTS))
    longest = estimator.longest(stage, max(read.prompts), math.inf)
    new = estimator.response(stage, settings.max_new_tokens)
    held = {name: judge.scorer for name, judge in judges.items()}
    cost.parameters = {settings.model: shape.parameters, **held}
    memory = _sampling_memory(
        shape, settings, responses=prompts, prompt=longest, bf16=False, on_cpu=estimator.on_cpu
    )
    weights = {"weights": float(FP32 * shape.parameters)}
    if held:
        weights["reward model"] = float(FP32 * sum(held.values()))
    cost.phases = [Phase("sampling", {**weights, **memory})]
    rows = rows_of([p + new for p in read.prompts], candidates * prompts)
    cost.decode(
        "sampling", shape, rows=rows.count, batch=settings.batch_size,
        prompt=read.prompt_mean, new=new, steps=settings.max_new_tokens, bf16=False,
    )  # fmt: skip
    for judge in judges.values():
        _add_scoring(cost, judge, rows, batch=settings.batch_size)
    return cost


def estimate_evaluate(stage: str, settings: EvaluateSettings, estimator: Estimator) -> StageCost:
    """Return the cost of answering with each checkpoint, its KL, judge, perplexity and tasks.

    One model is there at a time.
    """
    from pipeline.evaluation.judge.inputs import MAX_TEXTS

    cost = estimator.cost(stage)
    bf16 = estimator.bf16(settings.bf16)
    measured_to = settings.checkpoints[settings.measured_to]
    read = estimator.prompts(stage, settings.prompts, measured_to, settings.tools)
    prompts = min(read.rows, settings.limit or math.inf)
    asked = [min(p or a, settings.prefix_tokens or math.inf) for p, a in _pairs(read)]
    longest = estimator.longest(stage, max(asked), math.inf)
    new = estimator.response(stage, settings.max_new_tokens)
    rows, reads = rows_of([p + new for p in asked], prompts), settings.retrieve
    texts = Rows(0.0, 0.0, 0.0)
    if settings.perplexity:
        text = estimator.lengths(stage, settings.perplexity, measured_to, heldout=True)
        texts = rows_of(text.whole(), min(text.rows, rows_at_most(settings.perplexity, MAX_TEXTS)))
    mean, pool = sum(asked) / len(asked), rows.times(settings.best_of or 0)
    tasks = asked_by(stage, settings, estimator)
    for name, reference in settings.judged.items():
        shape = estimator.shape(reference, stage)
        passages = reads.passage_tokens if reads and name not in settings.checkpoints else 0
        cost.parameters[name] = shape.parameters
        cost.phases += _answering(
            name, shape, settings, responses=rows.count, longest=longest + passages, new=new,
            bf16=bf16, on_cpu=estimator.on_cpu,
        )  # fmt: skip
        cost.decode(
            f"sampling from {name}",
            shape,
            rows=rows.count + (pool.count if name == settings.measured_to else 0),
            batch=settings.batch_size,
            prompt=mean + passages,
            new=new,
            steps=settings.max_new_tokens,
            bf16=bf16,
        )
        # Under itself, and under the reference where that is another.
        seen = rows.times(1 if str(reference) == str(measured_to) else 2) + texts
        cost.compute(
            f"log-probabilities of {name}",
            shape,
            flops=forward_flops(shape, seen, positions=seen.tokens),
            tokens=seen.tokens,
            passes=seen.count / settings.batch_size,
            bf16=bf16,
        )
        if not passages:
            Asking(cost, name, shape, settings.batch_size, bf16).add(tasks)
    judged = rows.times(len(settings.judged)) + pool
    for who, terms in (("proxy", settings.terms), ("judge", settings.judge_terms)):
        for name, judge in estimator.judges(stage, terms).items():
            cost.parameters[f"{who} {name}"] = judge.scorer
            _add_scoring(cost, judge, judged, batch=64)
    for line in settings.call_lines(round(prompts)):
        estimator.assumed.tell(stage, line)
    return cost


def _answering(
    name: str,
    shape: ModelShape,
    settings: EvaluateSettings,
    *,
    responses: float,
    longest: int,
    new: float,
    bf16: bool,
    on_cpu: bool,
) -> list[Phase]:
    """Return the memory of a checkpoint that answers, and whose answers are looked at."""
    width = BF16 if bf16 else FP32
    weights = {"weights": float(width * shape.parameters)}
    memory = _sampling_memory(
        shape, settings, responses=responses, prompt=longest, bf16=bf16, on_cpu=on_cpu
    )
    logits = min(MOST_LOGITS, settings.batch_size * (longest + new) * shape.vocabulary)
    # As the model makes them, in fp32 divided by the temperature, and what their sum is made of.
    copied = FP32 if bf16 or settings.temperature not in (0, 1) else 0
    looked_at = {
        "logits": (width + copied + FP32) * logits,
        "activations": memory["activations"],
    }
    return [
        Phase(f"sampling from {name}", {**weights, **memory}),
        Phase(f"log-probabilities of {name}", {**weights, **looked_at}),
    ]


def _pairs(read: Lengths) -> list[tuple[float, float]]:
    """Return prompts with answers; a source of prompts alone has none of the latter."""
    answers = read.answers if len(read.answers) == len(read.prompts) else [0.0] * len(read.prompts)
    return list(zip(read.prompts, answers, strict=True))


def _add_scoring(cost: StageCost, judge: ModelShape, rows: Rows, *, batch: int) -> None:
    """Add that a reward model scores rows, in fp32."""
    cost.compute(
        "scoring",
        judge,
        flops=forward_flops(judge, rows, positions=0),
        tokens=rows.tokens,
        passes=rows.count / batch,
        bf16=False,
    )
