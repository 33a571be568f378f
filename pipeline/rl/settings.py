"""Hyper-parameters of PPO; the stage's settings extend them with models and prompts.

Sources: lmhp = Ziegler et al. 2019 and its code lm-human-preferences; InstructGPT = Ouyang et al.
2022; N = Huang et al. 2023, "The N implementation details of RLHF with PPO"; N+ = Huang et al.
2024, "The N+ implementation details of RLHF with PPO"; PPO = Schulman et al. 2017.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.contract.addresses import BaseAddress, Seconds
from pipeline.contract.settings import (
    NonNegative,
    NonNegativeInt,
    Number,
    PositiveInt,
    PositiveNumber,
    SameResult,
    Settings,
    Share,
)
from pipeline.contract.tool_settings import CallsTools
from pipeline.rl.micro_batches import Limit

SCORE_BATCH = 64
"""Episodes of a pass without gradients on one process, where tokens don't bound it."""


class AdaptiveKl(Settings):
    """Steers the KL coefficient to a target KL (lmhp, section 2.2)."""

    target: PositiveNumber = 6.0
    """KL to steer to, in nats a response (lmhp)."""
    horizon: PositiveNumber = 10_000.0
    """Episodes after which an error of 100 % has moved the coefficient by as much (lmhp)."""


AlarmName = Literal[
    "collapse",
    "length_hacking",
    "lost_ends",
    "kl_blow_up",
    "negative_kl",
    "large_steps",
    "dead_value",
    "entropy_collapse",
    "repetition",
    "identical_responses",
    "never_ends",
    "equal_scores",
    "random_start",
]


class DoctorSettings(Settings):
    """When an alarm rings, and what happens then; figures are means over `window` updates."""

    on_alarm: Literal["warn", "stop", "best"] = "warn"
    """Say so; or save and stop; or end with the best policy before it. A bad start is said only."""
    ignore: tuple[AlarmName, ...] = ()
    """Alarms that never ring."""
    window: PositiveInt = 5
    """Updates that a figure is the mean of; nothing rings before so many follow the first."""
    best_every: PositiveInt = 5
    """Updates between candidates for the best policy; each that is better is saved. With
    `evaluate_every` it is the policies evaluated, chosen by `evaluation/gold` if there is one, else
    by `evaluation/scores`."""
    kl_per_token: PositiveNumber = 1.5
    """kl_blow_up: KL to the reference, in nats a token (lmhp's target: 0.25); no policy with more
    is the best."""


class RolloutSettings(Settings):
    """Who samples the responses; all but `engine` is for a vLLM server (Kwon et al. 2023)."""

    engine: Literal["own", "vllm"] = "own"
    """The sampler in the training process, or a vLLM server beside it that you start."""
    url: Annotated[BaseAddress, SameResult()] = "http://127.0.0.1:8000"
    """Address of the server."""
    timeout: Annotated[Seconds, SameResult()] = 600.0
    """Seconds without an answer, to a request or to new weights, after which the run stops."""
    weights: Annotated[str | None, SameResult()] = None
    """Folder both see, for the weights on their way; the stage's own when not given."""
    max_difference: Annotated[PositiveNumber, SameResult()] = 0.05
    """Mean absolute log ratio of server and policy, in nats a token, above which the run stops."""


class Hyperparameters(CallsTools):
    """What PPO is run with; the defaults are design.md's."""

    episodes: PositiveInt = 51_200
    """Episodes of the whole run; rounded down to whole batches."""
    batch_size: PositiveInt = 512
    """Episodes of one update, over all processes (N+, InstructGPT)."""
    minibatches: PositiveInt = 1
    """Optimiser steps an epoch (N+; InstructGPT: 8)."""
    epochs: PositiveInt = 4
    """Passes over the episodes of an update (N+; InstructGPT: 1)."""
    micro_batch_size: Annotated[PositiveInt, SameResult()] = 32
    """Episodes of one backward pass on one process; changes memory and time, never the result."""
    tokens_per_micro_batch: Annotated[PositiveInt | None, SameResult()] = None
    """Tokens of a pass, with padding: in place of micro_batch_size, and of the 64 episodes that a
    pass without gradients has."""
    generation_batch_size: Annotated[PositiveInt, SameResult()] = 128
    """Episodes decoded together on one process, or requests to a server at a time."""

    max_new_tokens: PositiveInt = 64
    """Longest response in tokens, its end included (N+: 53)."""
    temperature: PositiveNumber = 0.7
    """Divides the logits in roll-out, reference and update alike (N+; InstructGPT: 1)."""
    top_k: NonNegativeInt = 0
    """Draw among so many tokens, 0 for all; anything else biases the ratio (N+: all)."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens with this sum; below 1 biases the ratio (N+: 1)."""

    kl_coefficient: NonNegative = 0.05
    """Weight of the KL, k1, in the reward (N+; InstructGPT: 0.02), the first one if adaptive."""
    adaptive_kl: AdaptiveKl | None = None
    """Adapt the coefficient after each update (lmhp); fixed when not given (N+)."""
    gamma: Share = 1.0
    """Discount (lmhp, N+)."""
    gae_lambda: Share = 0.95
    """Lambda of the advantage estimate (lmhp, N+)."""
    whiten_advantages: bool | Literal["minibatch"] = True
    """Scale advantages to mean 0, variance 1 over the global batch (lmhp, N+), or a minibatch."""
    whiten_rewards: bool = False
    """Scale rewards to variance 1, mean kept, over the global batch (lmhp; N+: off)."""

    clip: PositiveNumber = 0.2
    """How far the probability ratio may move from 1 (PPO, lmhp, N+)."""
    value_clip: PositiveNumber | None = 0.2
    """How far a value may move in an update (lmhp, N+); null never clips."""
    value_coefficient: NonNegative = 0.1
    """Weight of the value loss (lmhp, N+)."""
    entropy_coefficient: NonNegative = 0.0
    """Weight of an entropy bonus (lmhp, N+: none)."""
    early_stop_kl: PositiveNumber | None = None
    """End an update's epochs once half the mean squared log ratio passes this; null never does."""

    end_after: NonNegativeInt = 0
    """Tokens before which `end_tokens` end nothing (lmhp: 16); what follows an end is cut off."""
    end_rule: Literal["min", "replace", "subtract", "none"] = "min"
    """Score of a response without an end: min(score, end_penalty); N+ replaces it by the latter."""
    end_penalty: Number = -1.0
    """Score a response without an end cannot pass (N+); `subtract` takes its size off (TRL)."""
    score_position: Literal["last", "past_last"] = "last"
    """Where the score is added: the last token (lmhp), or one past it if it fits (N+, TRL)."""
    score_clip: PositiveNumber | None = None
    """Clip scores to plus and minus this, after normalisation; null never clips."""
    normalize_scores: bool = False
    """Divide scores by their running deviation, after taking off their running mean."""

    learning_rate: PositiveNumber = 3e-6
    """Learning rate of the policy (N+)."""
    value_learning_rate: PositiveNumber | None = None
    """Learning rate of a value model, or of the head on an adapter; the policy's if not given."""
    schedule: Literal["linear", "constant"] = "linear"
    """Learning rate over the run: linear to 0 (N+), or constant."""
    warmup_updates: NonNegativeInt = 0
    """Updates over which the learning rate rises from 0 (N+: none)."""
    value_warmup_updates: NonNegativeInt = 0
    """Updates at the start that train the value model alone."""
    adam_epsilon: PositiveNumber = 1e-5
    """Adam's epsilon (N, N+)."""
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's betas."""
    max_gradient_norm: PositiveNumber | None = None
    """Clip the gradient's norm, each model's apart (N+: not clipped)."""
    ema_decay: Share | None = None
    """Publish the policy's average with this decay a step (InstructGPT: 0.992); null doesn't."""

    ptx_coefficient: NonNegative = 0.0
    """Weight of the pretraining loss, a mean over tokens (InstructGPT: 27.8, units unpublished)."""
    ptx_rows_per_episode: PositiveNumber = 1.0
    """Pretraining rows for each episode of a minibatch (InstructGPT: 8)."""

    bf16: bool | Literal["auto"] = "auto"
    """bf16 products under fp32 weights; auto where the hardware has them."""
    compile: Annotated[bool, SameResult()] = False
    """Compile the layers with torch.compile: up to minutes at the start, less an update."""
    gradient_checkpointing: Annotated[bool, SameResult()] = False
    """Compute activations again in the backward pass, to save memory."""
    reuse_logprobs: bool = False
    """Take the roll-out's log-probabilities where they agree with the policy's: one pass less."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 10
    """Updates between resume states; 0 saves only when asked to stop."""
    sample_every: Annotated[NonNegativeInt, SameResult()] = 10
    """Updates between samples in samples.jsonl; 0 writes none."""
    sample_count: Annotated[PositiveInt, SameResult()] = 8
    """Episodes written then."""
    evaluate_every: Annotated[NonNegativeInt, SameResult("doctor_only_tells")] = 0
    """Updates between evaluations on `evaluation_prompts`, the start and the end included; 0 makes
    none."""
    rollout: RolloutSettings = RolloutSettings()
    """Who samples the responses."""
    doctor: Annotated[DoctorSettings, SameResult("doctor_only_tells")] = DoctorSettings()
    """When an alarm rings, and what happens then."""

    @model_validator(mode="after")
    def _batches_divide(self) -> Hyperparameters:
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {self.minibatches} minibatches"
            )
        if self.episodes < self.batch_size:
            raise ValueError(
                f"episodes {self.episodes} are fewer than one batch of {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Hyperparameters:
        if self.tokens_per_micro_batch is not None and self.changed_among("micro_batch_size"):
            raise ValueError(
                "tokens_per_micro_batch takes the place of micro_batch_size; leave out the one or "
                "the other"
            )
        return self

    @model_validator(mode="after")
    def _the_server_tells_the_whole_distribution(self) -> Hyperparameters:
        if self.rollout.engine == "vllm" and (self.top_k or self.top_p < 1):
            raise ValueError(
                "rollout.engine: vllm gives log-probabilities after top_k and top_p, not those of "
                "the policy; set top_k 0 and top_p 1, or rollout.engine: own"
            )
        return self

    @model_validator(mode="after")
    def _tools_are_called_here(self) -> Hyperparameters:
        if self.tools is None:
            return self
        if self.rollout.engine == "vllm":
            raise ValueError(
                "rollout.engine: vllm calls no tools; set rollout.engine: own, or leave out `tools`"
            )
        if self.end_after:
            raise ValueError(
                "end_after cuts off responses that are sampled already, with the calls in them; "
                "set end_after: 0, or leave out `tools`"
            )
        return self

    @property
    def doctor_only_tells(self) -> bool:
        """Whether the doctor decides nothing that is published."""
        return self.doctor.on_alarm != "best"

    @property
    def update_limit(self) -> Limit:
        """What one backward pass holds."""
        return Limit(self.micro_batch_size, self.tokens_per_micro_batch)

    @property
    def score_limit(self) -> Limit:
        """What one pass without gradients holds."""
        return Limit(SCORE_BATCH, self.tokens_per_micro_batch)

    @property
    def updates(self) -> int:
        """Number of updates of the run."""
        return self.episodes // self.batch_size
