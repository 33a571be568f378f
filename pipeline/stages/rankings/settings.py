"""Settings of the rankings stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.contract.retrieval import ReadsPassages
from pipeline.contract.settings import (
    NonNegative,
    NonNegativeInt,
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Share,
    SourceSettings,
    StageSettings,
)
from pipeline.contract.tool_settings import CallsTools
from pipeline.stages.rankings.people_settings import PeopleSettings
from pipeline.stages.reward_terms import Reward, RewardTerm, require_steady, reward_terms

MOST_COMPLETIONS = 9
"""Completions that a person can keep apart; InstructGPT: 4 to 9."""


MOST_ANSWERS = 4
"""Answers to a message that people wait for; as the label store has it."""
CHUNK = 64
"""Prompts that are sampled from one seed; another number gives other samples."""


class RankingsSettings(StageSettings, CallsTools, ReadsPassages):
    """Settings of a rankings stage."""

    kind: Literal["rankings"] = "rankings"
    """Kind of stage."""
    labeler: Literal["gold", "truth", "people", "file", "reward"] = "gold"
    """Who ranks: the embedded world's annotator (by `truth` alone: right, doesn't know, wrong or
    invented), people, nobody, `rankings` holding ranks, or a reward model or other rewards, of
    whose best an sft stage learns (best of n)."""
    reward: Annotated[Reward | None, Ref("reward")] = Field(
        None, exclude_if=lambda given: given is None
    )
    """With `labeler: reward`: a reward model, or a list of rewards as PPO takes, added up."""
    model: Annotated[str | None, Ref("policy")] = None
    """Checkpoint that answers the prompts."""
    prompts: tuple[SourceSettings, ...] = ()
    """What it answers; of a conversation or ranking the prompt alone is used."""
    rankings: tuple[SourceSettings, ...] = ()
    """With `labeler: file`: sources of rankings or of chosen/rejected pairs."""
    people: PeopleSettings | None = None
    """With `labeler: people`: how they are asked, and when enough is labelled."""
    limit: PositiveInt | None = None
    """At most so many prompts, drawn by the seed."""
    completions: Annotated[int, Field(ge=2)] = 4
    """Completions sampled for each prompt; InstructGPT: 4 to 9."""
    noise: NonNegative = 0.0
    """Standard deviation of the gold annotator's error, in units of its score (0 to 1)."""
    max_new_tokens: PositiveInt = 64
    """Most tokens of a completion."""
    temperature: PositiveNumber = 1.0
    """Divides the logits."""
    top_k: NonNegativeInt = 0
    """Draw among so many of the likeliest tokens; 0 draws among all."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens whose probabilities reach this sum."""
    batch_size: Annotated[PositiveInt, SameResult()] = 64
    """Completions sampled together."""
    max_too_long_share: Annotated[Share, SameResult()] = 0.05
    """Share of prompts too long for the context above which the stage stops."""
    bf16: bool | Literal["auto"] = "auto"
    """Sample in bfloat16; "auto" where the hardware has it."""
    trust_remote_code: bool = False
    """Run code that the checkpoint carries."""

    @model_validator(mode="after")
    def _fits_the_labeler(self) -> RankingsSettings:
        if self.people is not None and self.labeler != "people":
            raise ValueError(f"`people` is for labeler: people, this is labeler: {self.labeler}")
        if (self.labeler == "reward") != bool(self.reward):
            raise ValueError(
                "labeler: reward ranks by `reward`; name one"
                if self.labeler == "reward"
                else f"`reward` is for labeler: reward, this is labeler: {self.labeler}"
            )
        require_steady(self.terms)
        sampled = {"model": self.model, "prompts": self.prompts}
        if self.labeler == "file":
            given = sampled | {"retrieve": self.retrieve}
            unused = [name for name, value in given.items() if value]
            if unused or not self.rankings:
                raise ValueError(
                    "labeler: file takes `rankings` sources as they are"
                    + (f", so drop {' and '.join(unused)}" if unused else " and has none")
                )
            return self
        missing = [name for name, value in sampled.items() if not value]
        if missing or self.rankings:
            raise ValueError(
                f"labeler: {self.labeler} ranks what a model answers: "
                + (f"give {' and '.join(missing)}" if missing else "drop `rankings`")
            )
        if self.labeler == "people":
            self._fits_people()
        worlds = {source.world_seed if source.world else None for source in self.prompts}
        is_gold = self.labeler in ("gold", "truth")
        judged = is_gold or self.asked.judges_the_world
        if judged and (None in worlds or len(worlds) > 1):
            who = f"labeler: {self.labeler}" if is_gold else "the gold annotator"
            raise ValueError(
                f"{who} ranks answers to the embedded world's prompts alone; let all "
                "`prompts` be of one world, or use labeler: file"
            )
        return self

    def _fits_people(self) -> None:
        asked = self.asked
        if self.completions > MOST_COMPLETIONS:
            raise ValueError(
                f"people rank 2 to {MOST_COMPLETIONS} completions, this asks {self.completions}"
            )
        if asked.mode == "pairs" and self.completions != 2:
            raise ValueError(f"people.mode: pairs compares 2 completions, not {self.completions}")
        if asked.conversations is not None:
            if self.completions > MOST_ANSWERS:
                raise ValueError(
                    f"people wait for 2 to {MOST_ANSWERS} answers in a conversation; "
                    f"lower completions, now {self.completions}"
                )
            if self.tools or self.retrieve:
                raise ValueError("answers in conversations have neither tools nor retrieve")
        elif self.limit is not None and asked.needed > max(1, self.limit):
            raise ValueError(
                f"people.needed asks for {asked.needed:g} tasks, limit makes {self.limit} at most"
            )

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards that rank, by the path of what they come from."""
        return {} if self.reward is None else reward_terms(self.reward)

    @property
    def asked(self) -> PeopleSettings:
        """How people are asked."""
        return self.people or PeopleSettings()

    def applied_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        applied = super().applied_settings()
        del applied["people"]
        if self.labeler == "people":
            applied["people"] = self.asked.recorded_settings()
        return applied
