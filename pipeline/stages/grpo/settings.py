"""Settings of the stages that sample groups of answers: grpo, and what rloo shares with it.

Sources: GRPO = Shao et al. 2024 (DeepSeekMath), section 4.1; RLOO = Ahmadian et al. 2024; PPO's
settings of the same name are told in `pipeline/rl/settings.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
)
from pipeline.rl.settings import DoctorSettings
from pipeline.stages.evaluated import EvaluatedSettings
from pipeline.stages.reward_terms import Reward, RewardTerm, reward_terms
from pipeline.training.schedule import Schedule
from pipeline.training.settings import TrainingSettings

Several = Annotated[int, Field(gt=1)]


class GroupSettings(TrainingSettings, EvaluatedSettings):
    """What a policy learns from groups of its own answers by, whatever the loss."""

    policy: Annotated[str, Ref("policy")]
    """Checkpoint the policy starts from, as a rule the sft stage's."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer instead of the policy's own, such as one adopted with another padding token."""
    reward: Annotated[Reward, Ref("reward")]
    """Reward model, or a list of rewards, as PPO takes them."""
    reference: Annotated[str | None, Ref("policy")] = None
    """Checkpoint of the reference; the policy's start when not given."""
    prompts: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Where the prompts come from."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt in tokens; longer ones are dropped and counted."""
    max_dropped_share: Annotated[Share, SameResult()] = 0.5
    """Share of dropped prompts above which the stage stops."""
    prefix_tokens: PositiveInt | None = None
    """Tokens of a plain text that are its prompt."""
    group_size: Several
    """Answers to each prompt of an update."""
    batch_size: PositiveInt
    """Episodes of one update, over all processes."""
    temperature: PositiveNumber
    """Divides the logits in sampling, reference and update alike."""
    kl_coefficient: NonNegative
    """Weight of the KL to the reference; 0 needs no reference."""
    episodes: PositiveInt = 51_200
    """Episodes of the whole run; rounded down to whole batches."""
    micro_batch_size: Annotated[PositiveInt | None, SameResult()] = None
    """Episodes of one backward pass on one process; all at once when not given."""
    generation_batch_size: Annotated[PositiveInt, SameResult()] = 128
    """Episodes decoded together on one process."""
    max_new_tokens: PositiveInt = 64
    """Longest response in tokens, its end included."""
    clip: PositiveNumber = 0.2
    """How far the probability ratio may move from 1."""
    end_rule: Literal["min", "replace", "subtract", "none"] = "min"
    """Score of a response without an end, as PPO's."""
    end_penalty: Number = -1.0
    """Score a response without an end cannot pass; `subtract` takes its size off."""
    score_clip: PositiveNumber | None = None
    """Clip scores to plus and minus this, after normalisation; null never clips."""
    normalize_scores: bool = False
    """Divide scores by their running deviation, after taking off their running mean."""
    learning_rate: PositiveNumber = 1e-6
    """Peak learning rate (GRPO's for 7B)."""
    schedule: Schedule = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_share: Share = 0.0
    """Share of the updates over which the learning rate rises."""
    final_share: Share = 0.0
    """Share of the peak that the schedule ends at."""
    betas: tuple[Number, Number] = (0.9, 0.999)
    """AdamW's."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 10
    """Updates between two resume states; 0 saves only when told to stop."""
    sample_every: Annotated[NonNegativeInt, SameResult()] = 10
    """Updates between samples in samples.jsonl; 0 writes none."""
    sample_count: Annotated[PositiveInt, SameResult()] = 8
    """Episodes written then."""
    doctor: Annotated[DoctorSettings, SameResult()] = DoctorSettings()
    """When an alarm rings; it is told."""

    @model_validator(mode="after")
    def _groups_fit(self) -> GroupSettings:
        if self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}"
            )
        if self.episodes < self.batch_size:
            raise ValueError(
                f"episodes {self.episodes} are fewer than one batch of {self.batch_size}"
            )
        if not self.reward:
            raise ValueError("reward names no reward")
        if self.doctor.on_alarm != "warn":
            raise ValueError(
                f"doctor.on_alarm: {self.doctor.on_alarm} is for ppo; here alarms are told, set "
                "on_alarm: warn"
            )
        return self

    @property
    def terms(self) -> dict[str, RewardTerm]:
        """The rewards by the path of what they come from."""
        return reward_terms(self.reward)

    @property
    def updates(self) -> int:
        """Number of updates of the run."""
        return self.episodes // self.batch_size

    @property
    def log_every(self) -> int:
        """Updates between two lines of metrics."""
        return 1


class GrpoSettings(GroupSettings):
    """Settings of a grpo stage."""

    kind: Literal["grpo"] = "grpo"
    """Kind of stage."""
    group_size: Several = 16
    """Answers to each prompt of an update (GRPO: 64)."""
    batch_size: PositiveInt = 512
    """Episodes of one update, over all processes (GRPO: 1,024)."""
    temperature: PositiveNumber = 1.0
    """Divides the logits in sampling, reference and update alike."""
    kl_coefficient: NonNegative = 0.04
    """Weight of the KL, k3, in the loss (GRPO); 0 needs no reference."""
    loss: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """The mean over the tokens of each response (GRPO), its sum over `max_new_tokens` (Liu et al.
    2025), or the mean over the tokens of all responses of the update (Yu et al. 2025)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Whose deviation advantages are divided by: of the prompt's group (GRPO), of all, or none
    (Liu et al. 2025)."""
