"""Settings of the PPO stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.contract.retrieval import ReadsPassages
from pipeline.contract.settings import (
    Lora,
    PositiveInt,
    Ref,
    SameResult,
    Share,
    SourceSettings,
)
from pipeline.rl.settings import Hyperparameters
from pipeline.stages.evaluated import EvaluatedSettings
from pipeline.stages.reward_terms import (
    Reward,
    RewardTerm,
    model_references,
    reward_terms,
)


class PpoSettings(Hyperparameters, EvaluatedSettings, ReadsPassages):
    """Settings of the ppo stage; those of the algorithm are in `Hyperparameters`."""

    kind: Literal["ppo"] = "ppo"
    """Kind of stage."""
    policy: Annotated[str, Ref("policy")]
    """Checkpoint the policy starts from, as a rule the sft stage's."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer instead of the policy's own, such as one adopted with another padding token."""
    reward: Annotated[Reward, Ref("reward")]
    """Reward model, or a list of rewards."""
    reference: Annotated[str | None, Ref("policy")] = None
    """Checkpoint of the reference; the policy's start when not given (InstructGPT, N+)."""
    value: Literal["separate", "shared", "reward"] = "separate"
    """A model of its own (N+), a head on the policy's trunk, or on the reward model's adapter."""
    trunk: Literal["separate", "shared"] = "separate"
    """Models of their own, or one, with adapters for policy and reward and a head for the value."""
    lora: Lora | None = None
    """Adapter of the policy on a shared trunk; rank 16 on all linear layers when not given."""
    value_start: Annotated[str | None, Ref("reward")] = None
    """Reward model the value model starts from; the first one of `reward` (InstructGPT, N+)."""
    prompts: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Where the prompts come from."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt in tokens; longer ones are dropped and counted."""
    max_dropped_share: Annotated[Share, SameResult()] = 0.5
    """Share of dropped prompts above which the stage stops."""
    end_tokens: tuple[str, ...] = ()
    """Tokens that end a response beside the model's own, such as `<|endoftext|>`."""
    prefix_tokens: PositiveInt | None = None
    """Tokens of a plain text that are its prompt (lm-human-preferences)."""
    pretraining: Annotated[str | None, Ref("policy")] = None
    """Pretrain stage whose sources PPO-ptx draws rows from."""
    pretraining_sources: tuple[SourceSettings, ...] = ()
    """Sources of text PPO-ptx draws rows from, instead."""
    pretraining_row_tokens: PositiveInt = 256
    """Tokens of a row for PPO-ptx, at most."""
    trust_remote_code: bool = False
    """Run code that the policy's checkpoint carries."""

    @model_validator(mode="before")
    @classmethod
    def _the_value_follows_the_trunk(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("trunk") == "shared":
            return {"value": "shared", "lora": Lora(), **given}
        return given

    @model_validator(mode="after")
    def _one_trunk(self) -> PpoSettings:
        if self.trunk == "separate":
            if self.lora is not None:
                raise ValueError("lora is for trunk: shared; set that, or leave lora out")
            if self.value == "reward":
                raise ValueError(
                    "value: reward reads the reward model's adapter on trunk: shared; set that, or "
                    "value: separate"
                )
            return self
        if self.value == "separate":
            raise ValueError("trunk: shared has one model for all; drop it or value: separate")
        if self.reference is not None:
            raise ValueError(
                "trunk: shared takes the policy's start as reference; drop it or `reference`"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> PpoSettings:
        given = (self.pretraining is not None) + bool(self.pretraining_sources)
        if self.ptx_coefficient > 0 and given != 1:
            raise ValueError(
                "ptx_coefficient is above 0: name either `pretraining` or `pretraining_sources`"
            )
        if self.ptx_coefficient == 0 and given:
            raise ValueError("pretraining rows are named but ptx_coefficient is 0; set it above 0")
        if not self.reward:
            raise ValueError("reward names no reward")
        if self.value != "separate" and self.value_start is not None:
            raise ValueError("value_start is for value: separate; a head has a start of its own")
        if self.value == "shared" and self.score_position == "past_last":
            raise ValueError(
                "score_position: past_last needs a value of the state after the last token, which "
                "a head on the policy's trunk has not; set value: separate or score_position: last"
            )
        if self.passage_tokens >= self.max_prompt_tokens:
            raise ValueError(
                f"retrieve.passage_tokens is {self.passage_tokens}, which leaves nothing of "
                f"max_prompt_tokens {self.max_prompt_tokens} for a prompt; lower it or raise that"
            )
        if self.end_after and not self.end_tokens:
            raise ValueError("end_after is for end_tokens, and none are named")
        return self

    def applied_settings(self) -> dict[str, Any]:
        """Leave out the doctor unless it decides what is published, and a server there is not.

        Nor is a limit there that is not set: runs from before there were such go on.
        """
        applied = super().applied_settings()
        if self.tokens_per_micro_batch is None:
            del applied["tokens_per_micro_batch"]
        if self.tokenizer is None:
            del applied["tokenizer"]
        del applied["rollout"]
        if self.rollout.engine != "own":
            applied["rollout"] = {"engine": self.rollout.engine}
        if self.doctor_only_tells:
            del applied["doctor"]
        return applied

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards by the path of what they come from."""
        return reward_terms(self.reward)

    @property
    def judged_by_reward(self) -> list[str]:
        """A line for each reward model that is the second judge, and pays the policy, too."""
        paid, judged = (
            {model for item in terms.items() for model in model_references(*item).values()}
            for terms in (self.terms, self.evaluation_terms)
        )
        return [
            f"warning: {model}: evaluation_reward is not held out, PPO is paid by it; it can't "
            "tell over-optimisation"
            for model in sorted(paid & judged)
        ]
