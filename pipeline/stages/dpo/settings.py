"""Settings of the stages that train a policy on rankings: dpo, and what kto shares with it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.contract.settings import (
    NonNegativeInt,
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Share,
    SourceSettings,
)
from pipeline.training.settings import TrainingSettings


class PreferenceSettings(TrainingSettings):
    """What a policy learns from rankings by, whatever the loss."""

    model: Annotated[str, Ref("policy")]
    """Checkpoint the policy starts from, as a rule the sft stage's."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer instead of the model's own, such as one adopted with another padding token."""
    reference: Annotated[str | None, Ref("policy")] = None
    """Checkpoint of the reference; the policy's start when not given."""
    rankings: Annotated[str | tuple[str, ...] | None, Ref("rankings")] = None
    """Stage whose rankings it learns, or a file of rankings or pairs; or several of them."""
    train: tuple[SourceSettings, ...] = ()
    """Further sources of rankings or pairs to learn."""
    heldout_share: Share = 0.1
    """Share of the prompts kept from training to judge by; unused where `heldout` is set."""
    heldout: tuple[SourceSettings, ...] = ()
    """Sources of rankings to judge by instead of a share."""
    eval_rankings: Annotated[str | None, Ref("rankings")] = None
    """Rankings, noise-free if possible, that the reported figures are taken from."""
    max_length: PositiveInt | None = None
    """Longest prompt with response, tokens; the model's context when not given."""
    max_too_long_share: Annotated[Share, SameResult()] = 0.05
    """Share of completions longer than that, which are left out, above which the stage stops."""
    ties: Literal["drop", "half"] = "drop"
    """Leave tied pairs out, or prefer either answer equally often."""
    beta: PositiveNumber = 0.1
    """How strongly the policy is held to the reference."""
    epochs: PositiveNumber = 1.0
    """Passes over the pairs; in each, all prompts give as many as the one with most has."""
    batch_size: PositiveInt
    """Pairs of one optimiser step, over all processes."""
    micro_batch_size: PositiveInt | None = None
    """Pairs of one forward pass of one process; all at once when not given."""
    evaluate_every: Annotated[NonNegativeInt, SameResult()] = 50
    """Steps between two looks at what is held out; 0 for the end alone."""
    log_every: Annotated[PositiveInt, SameResult()] = 10
    """Steps between two lines of metrics."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 50
    """Steps between two resume states; 0 saves only when told to stop."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> PreferenceSettings:
        if not self.rankings and not self.train:
            raise ValueError(
                "this stage learns from `rankings` (a stage or file) or `train` sources; name one"
            )
        return self


class DpoSettings(PreferenceSettings):
    """Settings of a dpo stage."""

    kind: Literal["dpo"] = "dpo"
    """Kind of stage."""
    loss: Literal["sigmoid", "ipo", "robust"] = "sigmoid"
    """DPO's (Rafailov et al. 2023), IPO's (Azar et al. 2023; beta is its tau) with the mean over a
    response's tokens, or the one for labels that are wrong by `label_smoothing` (Chowdhury et al.
    2024)."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0
    """Share of wrong labels that `loss: robust` reckons with."""
    batch_size: PositiveInt = 64
    """Pairs of one optimiser step, over all processes; DPO: 64."""
    micro_batch_size: Annotated[PositiveInt | None, SameResult()] = None
    """Pairs of one forward pass of one process; all at once when not given."""
    learning_rate: PositiveNumber = 1e-6
    """Peak learning rate; DPO's for 2.8B and 6B, smaller models want more."""

    @model_validator(mode="after")
    def _smooths(self) -> DpoSettings:
        if (self.loss == "robust") != (self.label_smoothing > 0):
            raise ValueError(
                f"loss: {self.loss} with label_smoothing {self.label_smoothing:g}: the loss that "
                "reckons with wrong labels is `robust`, and it needs their share above 0"
            )
        return self
