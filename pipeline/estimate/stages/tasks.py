"""Estimates of the benchmark tasks that an evaluation asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from data.records import turn_text
from pipeline.estimate.model.assumptions import ANSWER_TOKENS, PROMPT_TOKENS, ROWS, SIDE_TOKENS
from pipeline.estimate.model.costs import Phase, StageCost
from pipeline.estimate.model.estimator import Estimator
from pipeline.estimate.model.flops import Rows, forward_flops
from pipeline.estimate.model.memory import BF16, FP32, decoding_memory, working_bytes
from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.model.sources import MEASURED, Count, Tree
from pipeline.models.batches import MOST_LOGITS

if TYPE_CHECKING:
    from pipeline.evaluation.benchmarks.settings import Task
    from pipeline.stages.evaluate.settings import EvaluateSettings

HUB_CHOICES = 4
"""Of a question that is not read."""

_TEXTS: Mapping[str, Callable[[Any], tuple[str, Sequence[str]]]] = {
    "choices": lambda question: (question.question, question.choices),
    "truthfulqa": lambda question: (question.question, question.answers),
    "gsm8k": lambda problem: (problem.question, (problem.answer,)),
    "world_facts": lambda row: (turn_text(row.prompt[-1]), ()),
    "world_lists": lambda line: (line.asked.question, line.asked.choices),
}
"""Kind of task -> the question of what it read, and the answers that stand beside it."""


@dataclass(frozen=True)
class Asked:
    """What a task asks of each checkpoint.

    Attributes:
        task: its settings.
        rows: questions, of all draws.
        prompts: tokens of each measured question, with the examples before it.
        choices: tokens of the answers to each, whose likelihoods are taken.
        new: tokens of an answer that is written, None where none is.
    """

    task: Task
    rows: float
    prompts: Sequence[float]
    choices: Sequence[Sequence[float]]
    new: float | None


def asked_by(stage: str, settings: EvaluateSettings, estimator: Estimator) -> list[Asked]:
    """Return what the tasks of a stage ask; those of lm-eval are not read, which is told.

    Raises:
        SourceError: a local file can't be read.
    """
    _, count = estimator.checkpoints.counter(
        settings.checkpoints[settings.measured_to], stage=stage
    )
    found = []
    for task in settings.tasks:
        if task.kind == "lm_eval":
            estimator.assumed.tell(stage, f"{task.called} is not counted: lm-eval reads it itself")
            continue
        rows, questions = _questions(stage, task, estimator, count)
        shots, draws = getattr(task, "shots", 0), getattr(task, "draws", 1)
        before = shots * fmean(q + (fmean(a) if a else 0.0) for q, a in questions)
        if task.kind == "gsm8k" and not shots:
            before = float(count(task.instruction))
        written = getattr(task, "max_new_tokens", None)  # the other tasks compare likelihoods
        found.append(
            Asked(
                task,
                rows * draws,
                [question + before for question, _ in questions],
                [] if written else [answers for _, answers in questions],
                estimator.response(stage, written) if written else None,
            )
        )
    return found


def _questions(
    stage: str, task: Task, estimator: Estimator, count: Count
) -> tuple[float, list[tuple[float, list[float]]]]:
    """Return how many questions a task has, and the tokens of some with those of their answers."""
    from pipeline.evaluation.benchmarks.registry import BENCHMARKS

    for source in task.sources:
        if source.hub is not None and not Path(source.hub).is_dir():
            rows = source.limit or ROWS
            estimator.assumed.tell(
                stage,
                f"{task.called}: {source.hub} is not read: {rows:,} questions of {PROMPT_TOKENS} "
                f"tokens assumed, and {HUB_CHOICES} answers of {ANSWER_TOKENS}",
            )
            return rows, [(PROMPT_TOKENS, [float(ANSWER_TOKENS)] * HUB_CHOICES)]
    prepared = BENCHMARKS[task.kind].prepare(task, lambda line: None)
    items = prepared[0] if isinstance(prepared, tuple) else prepared  # else with its examples

    def tokens(text: str) -> float:
        return float(count(text) + SIDE_TOKENS)

    return len(items), [
        (tokens(question), [tokens(answer) for answer in answers])
        for question, answers in map(_TEXTS[task.kind], items[:MEASURED])
    ]


def add_tasks(
    cost: StageCost,
    tasks: Sequence[Asked],
    settings: EvaluateSettings,
    *,
    name: str,
    shape: ModelShape,
    bf16: bool,
) -> None:
    """Add that a checkpoint is asked the tasks."""
    for asked in tasks:
        add = _add_likelihoods if asked.new is None else _add_answers
        add(cost, asked, settings, f"{asked.task.called} of {name}", shape, bf16)


def _add_answers(
    cost: StageCost,
    asked: Asked,
    settings: EvaluateSettings,
    part: str,
    shape: ModelShape,
    bf16: bool,
) -> None:
    """Add that answers are written."""
    task: Any = asked.task
    answers, width = asked.rows * getattr(task, "samples", 1), BF16 if bf16 else FP32
    memory = decoding_memory(
        shape, responses=answers, batch=settings.batch_size, prompt=round(max(asked.prompts)),
        new=task.max_new_tokens, key=width, value=width, bf16=bf16,
    )  # fmt: skip
    cost.phases.append(Phase(part, {"weights": float(width * shape.parameters), **memory}))
    cost.decode(
        part, shape, rows=answers, batch=settings.batch_size, prompt=fmean(asked.prompts),
        new=asked.new or 0.0, steps=task.max_new_tokens, bf16=bf16,
    )  # fmt: skip


def _add_likelihoods(
    cost: StageCost,
    asked: Asked,
    settings: EvaluateSettings,
    part: str,
    shape: ModelShape,
    bf16: bool,
) -> None:
    """Add that each answer's likelihood is taken, behind a question that is computed once.

    Examples that all questions share may be computed once, too; they count for each here.
    """
    trees = [
        Tree(prompt, fmean(choices), max(choices), len(choices))
        for prompt, choices in zip(asked.prompts, asked.choices, strict=True)
    ]
    share = asked.rows / len(trees)
    rows = Rows(
        sum(tree.branches for tree in trees),
        sum(tree.tokens for tree in trees),
        sum(tree.squares for tree in trees),
    ).times(share)
    positions = share * sum(map(sum, asked.choices))
    most = min(settings.batch_size, rows.count)
    longest = max(most / tree.branches * tree.tokens for tree in trees)
    width = BF16 if bf16 else FP32
    logits = min(MOST_LOGITS, positions / rows.count * most * shape.vocabulary)
    memory = {
        "weights": float(width * shape.parameters),
        "activations": working_bytes(shape, tokens=round(longest), bf16=bf16),
        "logits": (width + FP32 + FP32) * logits,
    }
    cost.phases.append(Phase(part, memory))
    cost.compute(
        part, shape, flops=forward_flops(shape, rows, positions=positions), tokens=rows.tokens,
        passes=rows.count / settings.batch_size, bf16=bf16,
    )  # fmt: skip
