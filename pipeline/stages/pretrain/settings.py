"""Settings of the pretrain stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from data.text.objectives import ObjectiveName
from pipeline.contract.settings import (
    NonNegative,
    NonNegativeInt,
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Settings,
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
FROM_SCRATCH: Mapping[ObjectiveName, tuple[str, ...]] = {
    "causal": ("llama", "qwen2", "gpt2", "gpt_neox"),
    "masked": ("bert", "roberta", "albert"),
    "span_corruption": ("t5", "bart"),
    "denoising": ("bart", "t5"),
}
"""Architectures that a model from scratch can have, by objective."""
OPTIONS = {"masking": "masked", "spans": "span_corruption", "noise": "denoising"}
"""Settings that one objective has."""
SHORTEST = 8
"""Tokens of a row from which something can be hidden."""

Hidden = Annotated[Number, Field(gt=0, le=0.5)]


class MaskingSettings(Settings):
    """What `masked` hides (Devlin et al. 2019)."""

    share: Hidden = 0.15
    """Share of the tokens that are to be told; of these 80 % are masked, 10 % others."""
    whole_words: bool = False
    """Whether whole words are chosen, not tokens."""
    next_sentence: bool = False
    """Whether rows are pairs, half of which follow each other, and that is to be told too."""


class SpanSettings(Settings):
    """What `span_corruption` hides (Raffel et al. 2020)."""

    share: Hidden = 0.15
    """Share of the tokens that are hidden."""
    mean_span: Annotated[Number, Field(ge=1)] = 3.0
    """Mean tokens of a span."""


class NoiseSettings(Settings):
    """How `denoising` spoils a row (Lewis et al. 2020)."""

    infill: Share = 0.3
    """Share of the tokens hidden in spans, each behind one mask."""
    mean_span: Annotated[Number, Field(ge=1)] = 3.0
    """Mean tokens of such a span, drawn from Poisson; those of length 0 put a mask in."""
    mask: Share = 0.0
    """Share of the tokens that are masked one by one."""
    delete: Share = 0.0
    """Share of the tokens that are deleted."""
    permute: Share = 1.0
    """Share of the rows whose sentences are shuffled."""
    rotate: Share = 0.0
    """Share of the rows that begin at another token."""


class TextSettings(LmSettings):
    """What is learned of which text, by a stage that makes a language model."""

    train: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Text to learn."""
    heldout: tuple[SourceSettings, ...] = ()
    """Text the model is judged on."""
    heldout_share: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the documents of `train` kept to judge the model; unused where `heldout` is set."""
    masking: MaskingSettings = MaskingSettings()
    """What the objective `masked` hides."""
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


class PretrainSettings(TextSettings):
    """Settings of a pretraining stage."""

    kind: Literal["pretrain"] = "pretrain"
    """Kind of stage."""
    tokenizer: Annotated[str | None, Ref("tokenizer")] = None
    """Tokenizer; that of `model` when not given."""
    model: Annotated[str | None, Ref("policy")] = None
    """Checkpoint to go on from; from scratch when not given."""
    objective: ObjectiveName = "causal"
    """What is learned of the text; all but the first need a tokenizer made for it."""
    spans: SpanSettings = SpanSettings()
    """What the objective `span_corruption` hides."""
    noise: NoiseSettings = NoiseSettings()
    """How the objective `denoising` spoils a row."""
    architecture: Literal[
        "llama", "qwen2", "gpt2", "gpt_neox", "bert", "roberta", "albert", "t5", "bart"
    ] = "llama"
    """Architecture of a model from scratch."""
    hidden_size: PositiveInt = 256
    """Width of the residual stream."""
    layers: PositiveInt = 4
    """Transformer blocks; of t5 and bart so many that read and so many that write."""
    heads: PositiveInt = 4
    """Attention heads."""
    kv_heads: PositiveInt | None = None
    """Heads of keys and values (llama, qwen2); as many as `heads` when not given."""
    intermediate_size: PositiveInt | None = None
    """Width of the feed-forward layer; 4 x hidden_size (llama, qwen2: 8/3, rounded up to 16s)."""
    tie_embeddings: bool = True
    """One matrix for input and output embedding."""
    rope_theta: PositiveNumber = 10_000.0
    """Base of the rotary embedding (llama, qwen2, gpt_neox)."""
    initializer_range: PositiveNumber = 0.02
    """Standard deviation of the initial weights (all but t5, which has a rule of its own)."""
    positions: PositiveInt | None = None
    """Longest input of a model from scratch, where its later stages need more than a chunk."""

    @model_validator(mode="after")
    def _consistent(self) -> PretrainSettings:
        self._check_objective()
        if self.model is None:
            self._check_shape()
        else:
            named = self.changed_among("architecture", *SHAPE)
            if named:
                raise ValueError(f"{named[0]} is for a model from scratch; `model` brings its own")
        return self

    def _check_objective(self) -> None:
        for name in self.changed_among(*OPTIONS):
            if OPTIONS[name] != self.objective:
                raise ValueError(f"`{name}` is for objective {OPTIONS[name]}, not {self.objective}")
        if self.objective == "causal":
            return
        if self.context_length < SHORTEST:
            raise ValueError(
                f"context_length {self.context_length} is too short for objective "
                f"{self.objective}; {SHORTEST} tokens are the least"
            )
        if not self.attend_across_documents:
            raise ValueError("`attend_across_documents: false` is for objective causal")
        if self.compile:
            raise ValueError(
                "`compile: true` is for objective causal: what is hidden has another size each time"
            )

    def _check_shape(self) -> None:
        if self.tokenizer is None:
            raise ValueError("a model from scratch needs a `tokenizer`")
        if self.architecture not in FROM_SCRATCH[self.objective]:
            raise ValueError(
                f"architecture {self.architecture} is not for objective {self.objective}; take "
                f"{' or '.join(FROM_SCRATCH[self.objective])}"
            )
        if self.architecture == "t5" and self.changed_among("initializer_range"):
            raise ValueError(
                "`initializer_range` is not for t5, whose weights begin by its own rule"
            )
        if self.longest_input < self.context_length:
            raise ValueError(
                f"positions {self.positions} is below context_length {self.context_length}"
            )
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        rotary = self.architecture in ("llama", "qwen2", "gpt_neox")
        if rotary and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size / heads is {self.hidden_size // self.heads}; a rotary embedding "
                "needs an even number"
            )

    def applied_settings(self) -> dict[str, Any]:
        """Return all settings that apply, as JSON; the seed apart."""
        applied = super().applied_settings()
        if self.objective == "causal":
            del applied["objective"]
        for name, objective in OPTIONS.items():
            if objective != self.objective:
                del applied[name]
        return applied

    @property
    def longest_input(self) -> int:
        """Positions of a model from scratch."""
        return self.positions or self.context_length

    @property
    def feed_forward_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.architecture in ("llama", "qwen2"):
            return -(-8 * self.hidden_size // 48) * 16
        return 4 * self.hidden_size

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
