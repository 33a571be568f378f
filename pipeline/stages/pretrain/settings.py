"""Settings of the pretrain stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

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
from pipeline.training.settings import LmSettings

if TYPE_CHECKING:
    from pipeline.models.architectures import Shape


SHAPE = (
    "hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "tie_embeddings",
    "rope_theta", "initializer_range", "positions",
)  # fmt: skip


class PretrainSettings(LmSettings):
    """Settings of a pretraining stage."""

    kind: Literal["pretrain"] = "pretrain"
    """Kind of stage."""
    train: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Text to learn."""
    heldout: tuple[SourceSettings, ...] = ()
    """Text the model is judged on."""
    heldout_share: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the documents of `train` kept to judge the model; unused where `heldout` is set."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer; that of `model` when not given."""
    model: Annotated[str | None, Ref("policy")] = None
    """Checkpoint to go on from; from scratch when not given."""
    architecture: Literal["llama", "qwen2", "gpt2", "gpt_neox"] = "llama"
    """Architecture of a model from scratch."""
    hidden_size: PositiveInt = 256
    """Width of the residual stream."""
    layers: PositiveInt = 4
    """Transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads."""
    kv_heads: PositiveInt | None = None
    """Heads of keys and values (llama, qwen2); as many as `heads` when not given."""
    intermediate_size: PositiveInt | None = None
    """Width of the feed-forward layer; 4 x hidden_size (gated: 8/3, rounded up to 16s)."""
    tie_embeddings: bool = True
    """One matrix for input and output embedding."""
    rope_theta: PositiveNumber = 10_000.0
    """Base of the rotary embedding (all but gpt2)."""
    initializer_range: PositiveNumber = 0.02
    """Standard deviation of the initial weights."""
    positions: PositiveInt | None = None
    """Longest input of a model from scratch, where its later stages need more than a chunk."""
    learning_rate: PositiveNumber = 1e-3
    """Peak learning rate."""
    warmup_share: Share = 0.02
    """Share of the steps over which the learning rate rises."""
    weight_decay: NonNegative = 0.1
    """AdamW's, on matrices alone; GPT-3 and Llama: 0.1."""
    log_every: Annotated[PositiveInt, SameResult()] = 10
    """Steps between two lines of metrics."""
    evaluate_every: Annotated[NonNegativeInt, SameResult()] = 100
    """Steps between two looks at the held-out text; 0 for the end alone."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 100
    """Steps between two resume states; 0 saves only when told to stop."""

    @model_validator(mode="after")
    def _consistent(self) -> PretrainSettings:
        if self.model is None:
            self._check_shape()
        else:
            named = self.changed_among("architecture", *SHAPE)
            if named:
                raise ValueError(f"{named[0]} is for a model from scratch; `model` brings its own")
        return self

    def _check_shape(self) -> None:
        if self.tokenizer is None:
            raise ValueError("a model from scratch needs a `tokenizer`")
        if self.longest_input < self.context_length:
            raise ValueError(
                f"positions {self.positions} is below context_length {self.context_length}"
            )
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.architecture != "gpt2" and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size / heads is {self.hidden_size // self.heads}; a rotary embedding "
                "needs an even number"
            )

    @property
    def longest_input(self) -> int:
        """Positions of a model from scratch."""
        return self.positions or self.context_length

    @property
    def feed_forward_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.architecture in ("gpt2", "gpt_neox"):
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // 48) * 16

    @property
    def shape(self) -> Shape:
        """Size of a model from scratch."""
        from pipeline.models.architectures import Shape

        return Shape(
            hidden_size=self.hidden_size,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            intermediate_size=self.feed_forward_size,
            context_length=self.longest_input,
            tie_embeddings=self.tie_embeddings,
            rope_theta=self.rope_theta,
            initializer_range=self.initializer_range,
        )
