"""Estimates of the benchmark tasks that an evaluation asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from pipeline.evaluation.benchmarks.settings import WorkedSettings
from pipeline.models.batches import MOST_LOGITS

if TYPE_CHECKING:
    from pipeline.evaluation.benchmarks.settings import Task, WorldFactsSettings
    from pipeline.stages.evaluate.settings import EvaluateSettings

HUB_CHOICES = 4
"""Of a question that is not read."""

_TEXTS: Mapping[str, Callable[[Any], tuple[str, Sequence[str]]]] = {
    "choices": lambda question: (question.question, question.choices),
    "truthfulqa": lambda question: (question.question, question.answers),
    "gsm8k": lambda problem: (problem.question, (problem.answer,)),
    "world_sums": lambda problem: (problem.question, (problem.answer,)),
    "world_facts": lambda row: (turn_text(row.prompt[-1]), ()),
    "world_lists": lambda line: (line.asked.question, line.asked.choices),
}
"""Kind of task -> the question of what it read, and the answers that stand beside it."""


@dataclass(frozen=True)
class Asked:
    """What a task asks of each checkpoint, in one way of asking it.

    Attributes:
        called: the task's name, and how it is asked where that is in two ways.
        rows: questions, of all draws.
        prompts: tokens of each measured question, with the examples before it.
        choices: tokens of the answers to each, whose likelihoods are taken.
        new: tokens of an answer that is written, None where none is.
        most: tokens that it has at most.
    """

    called: str
    rows: float
    prompts: Sequence[float]
    choices: Sequence[Sequence[float]]
    new: float | None = None
    most: int = 0


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
        ways = 1
        if isinstance(task, WorkedSettings):
            ways = len(task.ways)
            if not shots:
                before = float(count(task.instruction if True in task.ways else ""))
        prompts = [question + before for question, _ in questions]
        most = getattr(task, "max_new_tokens", None)  # the other tasks compare likelihoods
        if most is None:
            found.append(Asked(task.called, rows * draws, prompts, [a for _, a in questions]))
            continue
        answers = rows * draws * ways * getattr(task, "samples", 1)
        new = estimator.response(stage, most)
        found.append(Asked(task.called, answers, prompts, [], new, most))
        if task.kind == "world_facts":
            found.append(_likelihoods(task, count))
    return found


def _likelihoods(task: WorldFactsSettings, count: Count) -> Asked:
    """Return what the facts of a world are asked by likelihood."""
    from pipeline.evaluation.benchmarks.world_facts import begun_sentences, prepare

    rows = [*begun_sentences(task, prepare(task, lambda line: None)).values()]
    return Asked(
        f"{task.called} by likelihood",
        len(rows),
        [float(count(row["begun"])) for row in rows],
        [[float(count(f" {value}")) for value in row["choices"]] for row in rows],
    )


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


@dataclass(frozen=True)
class Asking:
    """A checkpoint that is asked, and the cost that this is added to.

    Attributes:
        cost: of the stage.
        name: the checkpoint's.
        shape: its model.
        batch_size: answers that are written or compared together.
        bf16: whether it computes in bfloat16.
    """

    cost: StageCost
    name: str
    shape: ModelShape
    batch_size: int
    bf16: bool

    def add(self, tasks: Iterable[Asked]) -> None:
        """Add that it is asked some tasks."""
        for asked in tasks:
            part = f"{asked.called} of {self.name}"
            if asked.new is None:
                self._add_likelihoods(part, asked)
            else:
                self._add_answers(part, asked, asked.new)

    def _add_answers(self, part: str, asked: Asked, new: float) -> None:
        """Add that answers of `new` tokens are written."""
        width = BF16 if self.bf16 else FP32
        memory = decoding_memory(
            self.shape, responses=asked.rows, batch=self.batch_size,
            prompt=round(max(asked.prompts)), new=asked.most, key=width, value=width,
            bf16=self.bf16,
        )  # fmt: skip
        weights = {"weights": float(width * self.shape.parameters)}
        self.cost.phases.append(Phase(part, weights | memory))
        self.cost.decode(
            part, self.shape, rows=asked.rows, batch=self.batch_size, prompt=fmean(asked.prompts),
            new=new, steps=asked.most, bf16=self.bf16,
        )  # fmt: skip

    def _add_likelihoods(self, part: str, asked: Asked) -> None:
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
        most = min(self.batch_size, rows.count)
        longest = max(most / tree.branches * tree.tokens for tree in trees)
        width = BF16 if self.bf16 else FP32
        logits = min(MOST_LOGITS, positions / rows.count * most * self.shape.vocabulary)
        memory = {
            "weights": float(width * self.shape.parameters),
            "activations": working_bytes(self.shape, tokens=round(longest), bf16=self.bf16),
            "logits": (width + FP32 + FP32) * logits,
        }
        self.cost.phases.append(Phase(part, memory))
        self.cost.compute(
            part, self.shape, flops=forward_flops(self.shape, rows, positions=positions),
            tokens=rows.tokens, passes=rows.count / self.batch_size, bf16=self.bf16,
        )  # fmt: skip
