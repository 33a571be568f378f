"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.errors import nearest
from data.words import counted
from pipeline.contract.retrieval import ReadingSettings, with_readers
from pipeline.contract.settings import (
    PositiveInt,
    Ref,
    SameResult,
    Share,
    SourceSettings,
    StageSettings,
)
from pipeline.evaluation.benchmarks.settings import Task, require_names_apart
from pipeline.evaluation.judge.settings import (
    AnswerSettings,
    HttpJudge,
    Judge,
    JudgeName,
    LlmJudge,
    RewardModelJudge,
    default_reference,
    require_free_names,
)
from pipeline.stages.asking_settings import AskingSettings
from pipeline.stages.reward_terms import (
    Reward,
    RewardTerm,
    require_steady,
    reward_terms,
)

CheckpointName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=40)]


class ComparingSettings(AskingSettings):
    """How people compare the checkpoints' answers, two at a time and not knowing whose they are."""

    annotators_per_task: PositiveInt = 2
    """How many compare each of those."""


class EvaluateSettings(AnswerSettings, StageSettings):
    """Settings of an evaluation."""

    kind: Literal["evaluate"] = "evaluate"
    """Kind of stage."""
    checkpoints: dict[CheckpointName, Annotated[str, Ref("policy")]] = Field(min_length=1)
    """Name in the report -> stage, path or hub id; in the order of training."""
    prompts: tuple[SourceSettings, ...] = Field(min_length=1)
    """Held-out prompts; of a conversation or ranking the prompt alone is used."""
    limit: PositiveInt | None = None
    """At most so many prompts, drawn by the seed."""
    max_too_long_share: Annotated[Share, SameResult()] = 0.05
    """Share of prompts too long for a checkpoint's context above which the stage stops."""
    perplexity: tuple[SourceSettings, ...] = ()
    """Held-out texts for the perplexity: 500 of them, unless a `limit` of each asks for more."""
    reference: str | None = None
    """Checkpoint that KL is measured to; `sft` when there is one, else the first."""
    plain: tuple[str, ...] = ()
    """Checkpoints prompted with plain text, without the chat template."""
    gold: bool = False
    """Judge by the embedded world's annotator; the prompts must all be of one world."""
    reward: Annotated[Reward | None, Ref("reward")] = None
    """Reward model that judges as `proxy`, or a list of rewards as PPO takes, added up."""
    rule: str | None = None
    """Rule (`reward.computed.rules`) that judges as `proxy` instead of a reward model."""
    rule_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule."""
    people: Annotated[ComparingSettings | None, SameResult(where="asks_nobody")] = None
    """People judge, too, by the label service: the stage waits until enough is compared."""
    judges: Annotated[dict[JudgeName, Judge], SameResult(where="asks_nobody_else")] = Field(
        default_factory=dict
    )
    """Name in the report -> a further judge: reward_model, http or llm."""
    batch_size: Annotated[PositiveInt, SameResult()] = 64
    """Responses sampled together."""
    resamples: PositiveInt = 2000
    """Draws of each bootstrap interval."""
    trust_remote_code: bool = False
    """Run code that a checkpoint carries."""
    tasks: Annotated[tuple[Task, ...], SameResult(where="asks_nothing")] = ()
    """Benchmark tasks that every checkpoint is asked, such as a multiple-choice file of yours."""
    best_of: Annotated[
        Annotated[int, Field(ge=2, le=256)] | None, SameResult(where="draws_no_pool")
    ] = None
    """Answers to each prompt that are drawn from the reference; choosing the best of 1, 2, 3, 4 ...
    of them by `reward` and judging by gold tells how far the reward can be trusted; without gold
    by the first of `judges` that scores."""
    retrieve: Annotated[ReadingSettings | None, SameResult(where="reads_nothing")] = None
    """Checkpoints stand a second time, as NAME+retrieval, with passages in front of each prompt."""

    @model_validator(mode="after")
    def _names_and_judges(self) -> EvaluateSettings:
        reading = self.retrieve.checkpoints if self.retrieve else ()
        for field, names in (
            ("plain", self.plain),
            ("reference", (self.reference,)),
            ("retrieve.checkpoints", reading),
        ):
            for name in names:
                if name is not None and name not in self.checkpoints:
                    raise ValueError(
                        f"{field}: '{name}' is none of the checkpoints "
                        f"({', '.join(self.checkpoints)}).{nearest(name, self.checkpoints)}"
                    )
        if self.reward is not None and self.rule is not None:
            raise ValueError("`reward` and `rule` both name the proxy judge; keep one")
        if self.people is not None and len(self.judged) < 2:
            raise ValueError("people compare two checkpoints at least, there is one")
        require_steady(self.terms)
        require_names_apart(self.tasks)
        require_free_names(self.judges, self.judged)
        worlds = {source.world_seed if source.world else None for source in self.prompts}
        if self.gold and (None in worlds or len(worlds) > 1):
            raise ValueError(
                "gold: the annotator judges the embedded world's prompts alone; let all `prompts` "
                "be of one world, or set gold: false"
            )
        return self

    @model_validator(mode="after")
    def _judges_a_pool(self) -> EvaluateSettings:
        scores = any(isinstance(j, RewardModelJudge | HttpJudge) for j in self.judges.values())
        judged = self.gold or scores
        if self.best_of and not (judged and self.terms and self.temperature != 0):
            raise ValueError(
                "best_of chooses by a reward and is judged by gold or a second judge: set gold: "
                "true or one of `judges` that scores, a `reward` and a temperature above 0"
            )
        return self

    @property
    def reads_nothing(self) -> bool:
        """Whether no checkpoint is given passages; `retrieve` is no part of the key then."""
        return self.retrieve is None

    @property
    def judged(self) -> dict[str, str]:
        """All that is judged: the checkpoints, and those among them that read passages."""
        return with_readers(self.checkpoints, self.retrieve)

    @property
    def asks_nobody_else(self) -> bool:
        """Whether there are no further judges; they are no part of the key then."""
        return not self.judges

    @property
    def draws_no_pool(self) -> bool:
        """Whether there is no best of n; it is no part of the key then."""
        return self.best_of is None

    @property
    def asks_nobody(self) -> bool:
        """Whether people don't judge; `people` is no part of the key then."""
        return self.people is None

    @property
    def asked(self) -> ComparingSettings:
        """How people are asked."""
        return self.people or ComparingSettings()

    @property
    def asks_nothing(self) -> bool:
        """Whether there are no tasks; they are no part of the key then."""
        return not self.tasks

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards that judge as `proxy` by the path of what they come from."""
        if self.rule is not None:
            return {"rule": RewardTerm(rule=self.rule, options=self.rule_options)}
        return {} if self.reward is None else reward_terms(self.reward)

    @property
    def judge_terms(self) -> dict[str, RewardTerm]:
        """The reward models among `judges`, as rewards, by the path of what they come from."""
        return {
            f"judges.{name}.model": RewardTerm(model=judge.model)
            for name, judge in self.judges.items()
            if isinstance(judge, RewardModelJudge)
        }

    def call_lines(self, prompts: int) -> list[str]:
        """Return a line for each judge that is a language model: how often it is asked at most."""
        names, lines = len(self.judged), []
        for name, judge in self.judges.items():
            if isinstance(judge, LlmJudge):
                calls = prompts * names * (names - 1)
                most = judge.max_calls
                over = f", more than max_calls {most:,}" if most and calls > most else ""
                lines.append(
                    f"judge {name}: {counted(calls, 'call')} of {judge.model} at most ("
                    f"{counted(prompts, 'prompt')} x {counted(calls // 2 // prompts, 'pair')} of "
                    f"checkpoints x 2 orders){over}"
                )
        return lines

    @property
    def measured_to(self) -> str:
        """Name of the checkpoint that KL is measured to."""
        return self.reference or default_reference(self.checkpoints)
