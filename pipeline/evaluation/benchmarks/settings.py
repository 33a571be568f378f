"""Settings of benchmark tasks, as `tasks` of an evaluation and suites hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from pipeline.contract.settings import (
    HashedFolder,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    Settings,
    SourceSettings,
    by_kind,
)


class TaskSettings(Settings):
    """What every task has."""

    kind: str
    """Kind of task."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60)] | None = (
        None
    )
    """Name in the report; the kind, or lm-eval's name, when not given."""

    @property
    def called(self) -> str:
        """Name in the report."""
        return self.name or self.kind

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The sources it reads."""
        return ()


class ShotsSettings(TaskSettings):
    """A task that is asked behind examples or without."""

    shots: NonNegativeInt = 0
    """Worked examples before each question."""
    draws: PositiveInt = 1
    """Draws of the examples; each asks all rows again."""

    @model_validator(mode="after")
    def _draws_something(self) -> ShotsSettings:
        if not self.shots and (self.draws > 1 or getattr(self, "examples", None) is not None):
            raise ValueError("draws and examples are for shots; set how many examples to show")
        return self


class FewShotSettings(ShotsSettings):
    """A task of rows in a file, asked behind examples or without."""

    source: SourceSettings
    """Rows to ask."""
    examples: SourceSettings | None = None
    """Rows that the examples are drawn from; the other rows of `source` when not given."""

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The sources it reads."""
        return (self.source,) if self.examples is None else (self.source, self.examples)


class ChoicesSettings(FewShotSettings):
    """Multiple choice from a file of yours, answered by likelihood.

    Columns: question, choices (a list, or `{text: [], label: []}`), and answer: the text of a
    choice, its label, its letter, or its number from 0. The first of them that fits counts.
    """

    kind: Literal["choices"] = "choices"
    """Kind of task."""


class TruthfulQaSettings(TaskSettings):
    """TruthfulQA's MC1 and MC2 from a file in one of its layouts."""

    kind: Literal["truthfulqa"] = "truthfulqa"
    """Kind of task."""
    source: SourceSettings
    """The paper's table, the hub's data set of multiple choice, or judged answers."""

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The sources it reads."""
        return (self.source,)


class WorkedSettings(ShotsSettings):
    """A task whose answers are numbers, worked out step by step, with self-consistency."""

    steps: Literal[True, False, "both"] = Field(True, exclude_if=lambda given: given is True)
    """Ask for steps and show them in examples, or for the answer alone; `both` asks in both ways
    and tells what the steps gain, over the same questions."""
    samples: PositiveInt = 1
    """Answers to each question; of several, maj@k for k = 2, 4, 8 ... is told."""
    temperature: NonNegative = 0.0
    """Divides the logits; 0 takes the likeliest token, and then one sample is all there is."""
    max_new_tokens: PositiveInt = 256
    """Most tokens of an answer."""
    instruction: str
    """Added to the question where no examples show the form, and steps are asked for."""
    direct_instruction: str = Field("", exclude_if=lambda given: not given)
    """The same where the answer alone is asked for."""

    @property
    def ways(self) -> tuple[bool, ...]:
        """Whether steps are asked for, in each way of asking."""
        return (True, False) if self.steps == "both" else (self.steps,)

    @model_validator(mode="after")
    def _samples_differ(self) -> WorkedSettings:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are alike; set a temperature, such as 0.7")
        if self.direct_instruction and self.steps is True:
            raise ValueError("direct_instruction is for answers alone; set steps to false or both")
        return self


class Gsm8kSettings(WorkedSettings, FewShotSettings):
    """GSM8K from a file of `question` and worked `answer`, with self-consistency."""

    kind: Literal["gsm8k"] = "gsm8k"
    """Kind of task."""
    instruction: str = "Work it out step by step, then write #### and the answer as a number."
    """Added to the question where no examples show the form, and steps are asked for."""


class WorldSumsSettings(WorkedSettings):
    """Sums of two steps of the embedded world, whose numbers were held out together."""

    kind: Literal["world_sums"] = "world_sums"
    """Kind of task."""
    world_seed: int = 0
    """Seed of the embedded world."""
    limit: PositiveInt | None = None
    """At most so many questions, the first; all when not given."""
    max_new_tokens: PositiveInt = 48
    """Most tokens of an answer."""
    instruction: str = "Let's think step by step."
    """Added to the question where no examples show the form, and steps are asked for."""

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The world's sums, held out, and those that examples are drawn from."""
        parts = ("sums_worked_heldout", "sums_worked")[: 1 + bool(self.shots)]
        return tuple(SourceSettings(world=part, world_seed=self.world_seed) for part in parts)


class WorldFactsSettings(TaskSettings):
    """Facts of the embedded world without a text to look them up in, and people nobody knows."""

    kind: Literal["world_facts"] = "world_facts"
    """Kind of task."""
    world_seed: int = 0
    """Seed of the embedded world."""
    limit: PositiveInt | None = None
    """At most so many questions of each kind, the first; all when not given."""
    max_new_tokens: PositiveInt = 48
    """Most tokens of an answer, which is the likeliest."""

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The world's questions."""
        return (SourceSettings(world="eval_prompts", world_seed=self.world_seed),)


class WorldListsSettings(ShotsSettings):
    """Lists of the embedded world, to go on with in the way that the lines before show."""

    kind: Literal["world_lists"] = "world_lists"
    """Kind of task."""
    world_seed: int = 0
    """Seed of the embedded world."""

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The world's lists."""
        return (SourceSettings(world="lists", world_seed=self.world_seed),)


class LmEvalSettings(TaskSettings):
    """Any task of lm-eval; needs the extra `eval`.

    A folder's YAML may name Python code beside it, which is run.
    """

    kind: Literal["lm_eval"] = "lm_eval"
    """Kind of task."""
    task: str
    """Name of a task or group."""
    folder: Annotated[str | None, HashedFolder()] = None
    """Folder of YAML task files; lm-eval's own tasks, with data of the hub, when not given."""
    shots: NonNegativeInt | None = None
    """Worked examples before each question; as the task has it when not given."""
    draws: PositiveInt = 1
    """Draws of the examples; each asks all again."""
    limit: PositiveInt | None = None
    """At most so many documents, the first."""
    chat: bool = False
    """Ask through the chat template, examples as turns; published figures are of plain text."""

    @property
    def called(self) -> str:
        """Name in the report."""
        return self.name or self.task

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The folder, as a data set of the hub that is on this machine."""
        return () if self.folder is None else (SourceSettings(hub=self.folder),)


Task = Annotated[
    Annotated[ChoicesSettings, Tag("choices")]
    | Annotated[TruthfulQaSettings, Tag("truthfulqa")]
    | Annotated[Gsm8kSettings, Tag("gsm8k")]
    | Annotated[WorldFactsSettings, Tag("world_facts")]
    | Annotated[WorldListsSettings, Tag("world_lists")]
    | Annotated[WorldSumsSettings, Tag("world_sums")]
    | Annotated[LmEvalSettings, Tag("lm_eval")],
    by_kind(
        "task_kind",
        "a task is a mapping whose `kind` is one of choices, truthfulqa, "
        "gsm8k, world_facts, world_lists, world_sums and lm_eval",
    ),
]
"""One entry of `tasks`."""


def require_names_apart(tasks: Sequence[TaskSettings]) -> None:
    """Refuse two tasks of one name.

    Raises:
        ValueError: names it.
    """
    names = [task.called for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tasks are called '{name}'; give each a `name` of its own")
