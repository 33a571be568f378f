"""Settings of the select stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.contract.retrieval import ReadsPassages
from pipeline.contract.settings import (
    NonNegative,
    PositiveInt,
    Ref,
    SameResult,
    SourceSettings,
    StageSettings,
)
from pipeline.contract.tool_settings import CallsTools
from pipeline.stages.reward_terms import (
    Reward,
    RewardTerm,
    require_steady,
    reward_terms,
)

MAX_PROMPTS = 256
"""Prompts that are answered, unless a `limit` of each source asks for more."""


class SelectSettings(StageSettings, CallsTools, ReadsPassages):
    """Settings of a select stage."""

    kind: Literal["select"] = "select"
    """Kind of stage."""
    model: Annotated[str, Ref("policy")]
    """SFT stage (or its folder) with several `candidates/`."""
    reward: Annotated[Reward, Ref("reward")]
    """Reward model that scores the responses, or a list of rewards as PPO takes, added up."""
    prompts: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Held-out prompts, of rows with a response the prompt alone: 256 in all, unless a `limit` of
    each source asks for more."""
    max_new_tokens: PositiveInt = 64
    """Most tokens of a response."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 takes the likeliest token."""
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
