"""Settings of the select stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.contract.settings import (
    Number,
    PositiveInt,
    Ref,
    SameResult,
    Share,
    SourceSettings,
    StageSettings,
)
from pipeline.stages.reward_terms import (
    Reward,
    RewardTerm,
    require_steady,
    reward_terms,
)


class SelectSettings(StageSettings):
    """Settings of a select stage."""

    kind: Literal["select"] = "select"
    """Kind of stage."""
    model: Annotated[str, Ref("policy")]
    """SFT stage (or its folder) with several `candidates/`."""
    reward: Annotated[Reward, Ref("reward")]
    """Reward model that scores the responses, or a list of rewards as PPO takes, added up."""
    prompts: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Sources of held-out prompts; of rows with a response the prompt is taken."""
    n_prompts: PositiveInt = 256
    """At most so many prompts."""
    max_new_tokens: PositiveInt = 64
    """Most tokens of a response."""
    temperature: Annotated[Number, Field(ge=0)] = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw among so many of the likeliest tokens; 0 among all."""
    top_p: Share = 1.0
    """Draw among the likeliest tokens whose probabilities reach this sum."""
    batch_size: Annotated[PositiveInt, SameResult()] = 64
    """Prompts sampled, and texts scored, together."""

    @model_validator(mode="after")
    def _judges_steadily(self) -> SelectSettings:
        if not self.reward:
            raise ValueError("reward names no reward")
        require_steady(self.terms)
        return self

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards by the path of what they come from."""
        return reward_terms(self.reward)
