"""Settings of the reward stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.contract.retrieval import ReadsPassages, RetrievalSettings
from pipeline.contract.settings import (
    Lora,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Share,
    SourceSettings,
)
from pipeline.training.settings import TrainingSettings

MAX_DEMONSTRATIONS = 500
"""Demonstrations scored for the bias, unless a `limit` of each source asks for more."""


class RewardSettings(TrainingSettings, ReadsPassages):
    """Settings of a reward stage."""

    kind: Literal["reward"] = "reward"
    """Kind of stage."""
    model: Annotated[str, Ref("policy")]
    """What it starts from: an SFT checkpoint, any causal or encoder model, or a reward model."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer instead of the model's own, such as one adopted with another padding token."""
    rankings: Annotated[str | tuple[str, ...] | None, Ref("rankings")] = None
    """Stage whose rankings it learns, or a file of rankings or pairs; or several of them."""
    train: tuple[SourceSettings, ...] = ()
    """Further sources of rankings or pairs to learn."""
    heldout_share: Share = 0.1
    """Share of the prompts kept from training to judge the model; unused where `heldout` is set."""
    heldout: tuple[SourceSettings, ...] = ()
    """Sources of rankings to judge the model by instead of a share."""
    eval_rankings: Annotated[str | None, Ref("rankings")] = None
    """Rankings, noise-free if possible, that the reported quality is taken from."""
    demonstrations: tuple[SourceSettings, ...] = ()
    """Held-out demonstrations that shall score 0 on average; none, no bias."""
    retrieve: RetrievalSettings | None = Field(None, exclude_if=lambda given: given is None)
    """Passages in front of the demonstrations' prompts; those of rankings have theirs already."""
    max_length: PositiveInt | None = None
    """Longest prompt with response, tokens; the model's own limit when not given."""
    max_truncated_share: Annotated[Share, SameResult()] = 0.05
    """Share of texts longer than that above which the stage stops."""
    ties: Literal["drop", "half"] = "drop"
    """Leave tied pairs out, or pull the probability that one is better to one half; not of rankings
    with soft labels, all of whose pairs are learnt."""
    margin: NonNegative = 0.0
    """Difference of scores asked of every ranked pair."""
    epochs: PositiveNumber = 1.0
    """Passes over the prompts; InstructGPT saw overfitting after one."""
    prompts_per_step: PositiveInt = 64
    """Prompts of one optimiser step, over all processes; InstructGPT: 64."""
    tokens_per_micro_batch: Annotated[PositiveInt, SameResult()] = 16384
    """Tokens of one forward pass, padding included; bounds the memory."""
    learning_rate: PositiveNumber = 9e-6
    """Peak learning rate; InstructGPT's for 6B."""
    lora: Lora | None = None
    """Train an adapter and the head alone, so that PPO can attach them to its policy's trunk."""
    compile: Annotated[bool, SameResult()] = False
    """Compile the layers with torch.compile: up to minutes at the start, a third less a step."""
    evaluate_every: Annotated[NonNegativeInt, SameResult()] = 50
    """Steps between two looks at the held-out rankings; 0 for none."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 50
    """Steps between two resume states; 0 saves only when told to stop."""

    @model_validator(mode="after")
    def _something_to_learn_and_to_judge(self) -> RewardSettings:
        if not self.rankings and not self.train:
            raise ValueError("a reward stage needs `rankings` (a stage or file) or `train` sources")
        if not self.heldout and self.eval_rankings is None and self.heldout_share == 0:
            raise ValueError(
                "nothing is held out: set heldout_share above 0, or give heldout or eval_rankings"
            )
        if self.retrieve is not None and not self.demonstrations:
            raise ValueError("`retrieve` is for `demonstrations`, and none are named; drop it")
        return self
