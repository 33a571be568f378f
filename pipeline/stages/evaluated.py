"""Settings of the stages whose policy is judged on held-out prompts while it is trained."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from pipeline.contract.settings import (
    NonNegativeInt,
    Ref,
    SameResult,
    SourceSettings,
    StageSettings,
)
from pipeline.stages.reward_terms import Reward, RewardTerm, require_steady, reward_terms

_EVALUATION = ("evaluation_prompts", "evaluation_reward", "evaluation_gold")


class EvaluatedSettings(StageSettings):
    """What a policy is judged on while it is trained."""

    evaluate_every: Annotated[NonNegativeInt, SameResult()] = 0
    """Updates between evaluations on `evaluation_prompts`, the end included; 0 makes none."""
    evaluation_prompts: tuple[SourceSettings, ...] = ()
    """Held-out prompts for `evaluate_every`; those trained on are left out and counted."""
    evaluation_reward: Annotated[Reward | None, Ref("reward")] = None
    """Second judge of the evaluations, trained on nothing that the policy is paid by: a reward
    model, or a list of rewards, added up; its mean is `evaluation/gold`."""
    evaluation_gold: bool = False
    """The embedded world's annotator as that judge; the prompts must all be of one world."""

    @model_validator(mode="after")
    def _is_evaluated(self) -> EvaluatedSettings:
        given = self.changed_among(*_EVALUATION)
        if self.evaluate_every == 0:
            if given:
                raise ValueError(
                    f"{given[0]} is for evaluations in training, and evaluate_every is 0; set "
                    "that above 0"
                )
            return self
        if not self.evaluation_prompts:
            raise ValueError("evaluate_every is above 0: name the evaluation_prompts")
        if self.evaluation_gold and self.evaluation_reward is not None:
            raise ValueError(
                "`evaluation_gold` and `evaluation_reward` both name the second judge; keep one"
            )
        require_steady(self.evaluation_terms, field="evaluation_reward")
        worlds = {s.world_seed if s.world else None for s in self.evaluation_prompts}
        if self.evaluation_gold and (None in worlds or len(worlds) > 1):
            raise ValueError(
                "evaluation_gold: the annotator judges the embedded world's prompts alone; let all "
                "`evaluation_prompts` be of one world, or set evaluation_gold: false"
            )
        return self

    def applied_settings(self) -> dict[str, Any]:
        """Leave out evaluations that are not made: runs from before there were such go on."""
        applied = super().applied_settings()
        if self.evaluate_every == 0:
            for name in ("evaluate_every", *_EVALUATION):
                del applied[name]
        return applied

    @property
    def evaluation_terms(self) -> dict[str, RewardTerm]:
        """The rewards that are the second judge of evaluations, by their paths."""
        if self.evaluation_reward is None:
            return {}
        return reward_terms(self.evaluation_reward, field="evaluation_reward")
