"""Settings of `labeler: people`; imports nothing heavy, as a recipe is checked with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from data.labels.records import Mode, Strategy
from pipeline.contract.served_model import ServedModel
from pipeline.contract.settings import (
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Settings,
    Share,
    by_kind,
    same_result,
)
from pipeline.stages.asking_settings import AskingSettings

GOLD_TASKS = 50
"""Tasks that are drawn of those with known ranks."""


class GoldAnnotatorSettings(Settings):
    """The embedded world's gold annotator, labelling like anybody else."""

    kind: Literal["gold"] = "gold"
    """Kind of annotator."""
    noise: NonNegative = 0.0
    """Standard deviation of its error, in units of its score (0 to 1)."""


class SimulatedPoolSettings(Settings):
    """A pool of simulated annotators with differing tastes (AlpacaFarm, Dubois et al. 2023)."""

    kind: Literal["simulated"] = "simulated"
    """Kind of annotator."""
    pool: PositiveInt = 13
    """How many there are; AlpacaFarm: 13."""
    flip: Share = 0.25
    """Chance that a preference is turned round; AlpacaFarm: 0.25."""
    quality: Literal["gold", "scores"] = "gold"
    """What an answer is worth: the embedded world's score, or the mean of `scored_by`."""


class JudgeSettings(ServedModel):
    """A language model behind an OpenAI-compatible address, asked for each pair in both orders.

    K completions take K (K - 1) calls, and K more for ratings.
    """

    kind: Literal["judge"] = "judge"
    """Kind of annotator."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "judge"
    """Its name among the annotators, and of its log in RUN/labels."""
    max_answer_tokens: PositiveInt = 300
    """Tokens of one answer."""
    temperature: NonNegative = 0.0
    """Of its answers; 0 is the likeliest."""
    concurrency: Annotated[PositiveInt, SameResult()] = 4
    """Calls at the same time."""


AnnotatorSettings = Annotated[
    Annotated[GoldAnnotatorSettings, Tag("gold")]
    | Annotated[SimulatedPoolSettings, Tag("simulated")]
    | Annotated[JudgeSettings, Tag("judge")],
    by_kind(
        "annotator_kind",
        "kind is one of gold, simulated, judge",
    ),
]


class ConversationSettings(Settings):
    """Live conversations: people write the prompts, and go on with the answer they rank best."""

    against: Annotated[str | None, Ref("policy")] = None
    """A second checkpoint, which writes half of the answers; `model` writes all when not given."""
    most_turns: PositiveInt = 6
    """Messages of one conversation."""
    all_turns: NonNegativeInt = 0
    """Messages of all conversations together; 0 is no bound."""
    all_tokens: NonNegativeInt = 0
    """Sampled tokens after which no message is taken; 0 is no bound."""


class PeopleSettings(AskingSettings):
    """How people are asked to rank."""

    mode: Mode = "rate_and_rank"
    """Ratings and flags before ranks (InstructGPT), ranks alone, or two answers and a strength."""
    strategy: Strategy = "random"
    """Next task: any, where `scored_by` disagree, or where they score the best two alike."""
    scored_by: tuple[Annotated[str, Ref("reward")], ...] = ()
    """Reward models whose scores `strategy` looks at."""
    gold: Annotated[str | None, Ref("rankings")] = None
    """Tasks of known ranks, 50 drawn by the seed: a rankings stage, or a file of rankings."""
    gold_share: Share = 0.0
    """Chance that the next task is one of `gold`."""
    repeat_share: Share = 0.0
    """Chance that the next task is one that the same person labelled before."""
    qualification_tasks: NonNegativeInt = 0
    """Tasks of `gold` that a person does first, and is told the answer of."""
    qualification_share: Share = 0.7
    """Share of their pairs that must be ordered as known."""
    lease_minutes: Annotated[PositiveNumber, SameResult()] = 30.0
    """How long a task stays with a person who does not submit it."""
    consolidation: Literal["per_annotator", "majority", "soft"] = "per_annotator"
    """Several labels of a task are a ranking each (InstructGPT), one by majority of pairs, or that
    with the share of annotators for each, which the reward stage takes as its target."""
    campaign: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    """Name of the campaign; the stage's when not given."""
    annotators: tuple[AnnotatorSettings, ...] = ()
    """Annotators that are no people, who label while the stage waits."""
    conversations: ConversationSettings | None = Field(None, exclude_if=lambda given: given is None)
    """People write, `model` gives each message `completions` answers; `prompts` are suggested."""

    @model_validator(mode="after")
    def _makes_sense(self) -> PeopleSettings:
        if self.gold is None and (self.gold_share or self.qualification_tasks):
            raise ValueError("gold_share and qualification_tasks need `gold`, tasks of known ranks")
        if self.qualification_tasks > GOLD_TASKS:
            raise ValueError(
                f"qualification_tasks {self.qualification_tasks} are more than the "
                f"{GOLD_TASKS} tasks that are drawn of `gold`"
            )
        if self.gold_share + self.repeat_share >= 1:
            raise ValueError("gold_share and repeat_share leave no room; below 1 together")
        models = {"random": 0, "small_gap": 1, "disagreement": 2}[self.strategy]
        scores = any(getattr(one, "quality", "") == "scores" for one in self.annotators)
        if len(self.scored_by) < max(models, int(scores)):
            raise ValueError(
                f"strategy: {self.strategy} needs {models} reward models in `scored_by`"
                if models > len(self.scored_by)
                else "quality: scores needs a reward model in `scored_by`"
            )
        names = [one.name for one in self.annotators if isinstance(one, JudgeSettings)]
        kinds = [one.kind for one in self.annotators if not isinstance(one, JudgeSettings)]
        for name in (*names, *kinds):
            if (*names, *kinds).count(name) > 1:
                raise ValueError(f"two annotators are '{name}'; a judge can have another `name`")
        self._fits_conversations()
        return self

    def _fits_conversations(self) -> None:
        if self.conversations is None:
            return
        tasks = ("gold", "repeat_share", "annotators", "scored_by")
        if unused := [name for name in tasks if getattr(self, name)]:
            raise ValueError(
                f"conversations have no tasks made beforehand, so drop {' and '.join(unused)}"
            )
        if self.needed <= 1 and not self.conversations.all_turns:
            raise ValueError(
                "needed is a number of messages with conversations, such as 200, or a share of "
                "conversations.all_turns"
            )
        if self.needed > 1 and 0 < self.conversations.all_turns < self.needed:
            raise ValueError(
                f"needed asks for {self.needed:g} messages, conversations.all_turns takes "
                f"{self.conversations.all_turns}"
            )

    @property
    def messages_needed(self) -> int:
        """Messages of conversations whose answers need to be ranked."""
        assert self.conversations is not None
        share = self.needed if self.needed <= 1 else 0
        return max(1, round(share * self.conversations.all_turns or self.needed))

    def recorded_settings(self) -> dict[str, Any]:
        """Return the settings that labels or annotators follow from, as JSON."""
        own = {place for place in same_result(self) if "." not in place}
        return self.model_dump(mode="json", exclude=own)

    @property
    def judges_the_world(self) -> bool:
        """Whether an annotator knows the embedded world alone."""
        return any(
            one.kind == "gold" or getattr(one, "quality", "") == "gold" for one in self.annotators
        )
