"""Stage `pretrain`: causal language modelling, from scratch or continued from a checkpoint.

Text is tokenised once into chunks of one context length on disk, documents set apart by
`<|endoftext|>` (else the end-of-sequence token), and learned in an order that follows from seed
and epoch alone. AdamW with betas 0.9, 0.95, weight decay on matrices, gradients clipped at 1,
cosine after a linear warm-up (Brown et al. 2020, appendix B; Touvron et al. 2023, section 2.2).

Departures: dropout is 0 in every architecture, GPT-2's too; a batch that reaches beyond an epoch
is filled from the next; what fills no chunk at the end of the text is left out, and said.

Leaves `model/`. `work/` holds the chunks until the stage is done.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from data.errors import HandOverError
from pipeline.config import (
    Number,
    PositiveInt,
    PositiveNumber,
    Ref,
    SameResult,
    Share,
    SourceSettings,
    StageKind,
    StageSettings,
)
from pipeline.stages._checks import require_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.architectures import Shape
    from pipeline.context import StageContext
    from pipeline.handover import HandOver
    from pipeline.training_lm import LmHyperparameters, LmTrainer

NonNegativeInt = Annotated[int, Field(ge=0)]
SHAPE = (
    "hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "tie_embeddings",
    "rope_theta", "initializer_range", "positions",
)  # fmt: skip


class PretrainSettings(StageSettings):
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
    context_length: Annotated[int, Field(ge=2)] = 512
    """Tokens of a chunk; a model from scratch has as many positions, or `positions`."""
    positions: PositiveInt | None = None
    """Longest input of a model from scratch, where its later stages need more than a chunk."""
    attend_across_documents: bool = True
    """Whether a token sees the documents before its own in the chunk; false is slower."""
    steps: PositiveInt | None = None
    """Optimiser's steps in all."""
    epochs: PositiveNumber | None = None
    """Passes over the text instead of `steps`; 1 when none of the three is given."""
    tokens: PositiveInt | None = None
    """Tokens to learn instead of `steps`."""
    batch_size: PositiveInt = 32
    """Chunks of one step, over all processes."""
    micro_batch_size: Annotated[PositiveInt | None, SameResult()] = None
    """Chunks of one forward pass; gradients gather until the batch is done."""
    learning_rate: PositiveNumber = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_share: Share = 0.02
    """Share of the steps over which the learning rate rises."""
    final_share: Share = 0.1
    """Share of the peak that the schedule ends at."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.1
    """AdamW's, on matrices alone."""
    betas: tuple[Number, Number] = (0.9, 0.95)
    """AdamW's."""
    epsilon: PositiveNumber = 1e-8
    """AdamW's."""
    max_gradient_norm: PositiveNumber = 1.0
    """Longer gradients are scaled down to it."""
    bf16: bool | Literal["auto"] = "auto"
    """Forward pass in bfloat16; "auto" where the hardware has it. Weights stay float32."""
    compile: Annotated[bool, SameResult()] = False
    """Compile the model with torch.compile."""
    gradient_checkpointing: Annotated[bool, SameResult()] = False
    """Compute activations twice to save memory."""
    log_every: Annotated[PositiveInt, SameResult()] = 10
    """Steps between two lines of metrics."""
    evaluate_every: Annotated[NonNegativeInt, SameResult()] = 100
    """Steps between two looks at the held-out text; 0 for the end alone."""
    heldout_chunks: PositiveInt = 256
    """At most so many held-out chunks are looked at, spread evenly."""
    save_every: Annotated[NonNegativeInt, SameResult()] = 100
    """Steps between two resume states; 0 saves only when told to stop."""
    trust_remote_code: bool = False
    """Run code that the checkpoint carries."""

    @model_validator(mode="after")
    def _consistent(self) -> PretrainSettings:
        lengths = [k for k in ("steps", "epochs", "tokens") if getattr(self, k) is not None]
        if len(lengths) > 1:
            raise ValueError(f"{' and '.join(lengths)} contradict; give one of them")
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
        from pipeline.architectures import Shape

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


def check(settings: PretrainSettings, hand: HandOver) -> None:
    """Refuse a checkpoint that does not fit tokenizer or context.

    Raises:
        HandOverError: pad equals end-of-sequence, the vocabulary outgrows the embedding, or the
            context is longer than the model's.
    """
    if settings.tokenizer is not None:
        hand.require_usable_tokenizer(settings.tokenizer)
    require_texts(hand, "train", settings.train)
    require_texts(hand, "heldout", settings.heldout)
    if settings.batch_size % hand.processes:
        raise HandOverError(
            f"stage {hand.name}: batch_size {settings.batch_size} can't be shared by "
            f"{hand.processes} processes; make it a multiple"
        )
    if settings.model is not None:
        _check_start(settings, settings.model, hand)


def _check_start(settings: PretrainSettings, start: str, hand: HandOver) -> None:
    if settings.tokenizer is None:
        hand.require_usable_tokenizer(start, way_out=hand.with_another_pad(start))
    else:
        model, tokenizer = hand.facts(start), hand.facts(settings.tokenizer)
        rows = model.vocab_size if model is not None else None
        ids = tokenizer.tokenizer_size if tokenizer is not None else None
        if rows is not None and ids is not None and ids > rows:
            raise HandOverError(
                f"stage {hand.name}: the tokenizer of {settings.tokenizer} has {ids} tokens, "
                f"{start} an embedding of {rows}; use the model's own tokenizer"
            )
    hand.require_fits_context(start, settings.context_length, "context_length")
    hand.require_writer(start, "model", "pretraining goes on from a causal language model")
    hand.require_class(
        start, "model", "causal", way_out="name another model", trust=settings.trust_remote_code
    )


def run(context: StageContext[PretrainSettings]) -> dict[str, float | int | str]:
    """Pack the text, train, judge and save; return the final metrics."""
    from pipeline.models import load_tokenizer
    from pipeline.saving import try_saving
    from pipeline.training import Rhythm, run_loop
    from pipeline.training_corpus import prepare_corpus
    from pipeline.training_lm import LmTrainer

    settings = context.settings
    tokenizer = load_tokenizer(
        context.input("tokenizer" if settings.tokenizer is not None else "model"),
        trust_remote_code=settings.trust_remote_code,
    )
    model = _model(context, tokenizer)
    try_saving(context, model, tokenizer)
    corpus = prepare_corpus(
        context,
        copy.deepcopy(tokenizer),  # to use one forgets how it fills up and cuts; it is published
        train=settings.train,
        heldout=settings.heldout,
        heldout_share=settings.heldout_share,
        context_length=settings.context_length,
        vocab_size=model.config.vocab_size,
    )
    trainer = LmTrainer(
        model=model,
        train=corpus.train,
        hyper=_hyperparameters(settings, len(corpus.train)),
        seed=context.seed,
        heldout=corpus.heldout,
        heldout_chunks=settings.heldout_chunks,
    )
    steps = trainer.hyper.steps
    learned = steps * settings.batch_size * settings.context_length
    context.say(
        f"{model.num_parameters():,} parameters, {steps:,} steps, {learned:,} tokens "
        f"({learned / corpus.train.about.tokens:.2f} epochs)"
    )
    last = run_loop(
        context,
        Rhythm(steps, settings.log_every, settings.evaluate_every, settings.save_every),
        step=trainer.step,
        save=trainer.save,
        load=trainer.load,
        evaluate=None if corpus.heldout is None else trainer.evaluate,
        label="pretraining",
    )
    _save(context, trainer, tokenizer)
    return {
        **last,
        **corpus.counts,
        "parameters": model.num_parameters(),
        "steps": steps,
        "tokens": learned,
    }


def _model(
    context: StageContext[PretrainSettings], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Return the model to train: new, or the checkpoint's."""
    from pipeline.architectures import build_policy, vocabulary_size
    from pipeline.models import load_policy
    from pipeline.trials import require_causal

    settings = context.settings
    if settings.model is None:
        model = build_policy(settings.architecture, settings.shape, tokenizer, seed=context.seed)
    else:
        model = load_policy(context.input("model"), trust_remote_code=settings.trust_remote_code)
        require_causal(model, settings.model)
        rows = model.get_input_embeddings().weight.shape[0]
        if vocabulary_size(tokenizer) > rows:
            raise HandOverError(
                f"stage {context.name}: the tokenizer has {vocabulary_size(tokenizer)} tokens, "
                f"{settings.model} an embedding of {rows}; use the model's own tokenizer"
            )
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def _hyperparameters(settings: PretrainSettings, chunks: int) -> LmHyperparameters:
    from pipeline.models import pick_device, resolve_bf16
    from pipeline.training_lm import LmHyperparameters, total_steps

    steps = total_steps(
        steps=settings.steps,
        epochs=settings.epochs,
        tokens=settings.tokens,
        chunks=chunks,
        context_length=settings.context_length,
        batch_size=settings.batch_size,
    )
    return LmHyperparameters(
        steps=steps,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size or settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=round(settings.warmup_share * steps),
        schedule=settings.schedule,
        final_share=settings.final_share,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        epsilon=settings.epsilon,
        max_gradient_norm=settings.max_gradient_norm,
        attend_across_documents=settings.attend_across_documents,
        bf16=resolve_bf16(settings.bf16, pick_device()),
        compile=settings.compile,
    )


def _save(
    context: StageContext[PretrainSettings],
    trainer: LmTrainer,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    from transformers.utils import logging

    from data.storage import storage_errors

    gathered = trainer.weights()
    if not context.main_process:
        return
    folder = context.folder / "model"
    extra: dict[str, Any] = {} if gathered is None else {"state_dict": gathered}
    logging.disable_progress_bar()
    with storage_errors(folder):
        trainer.model.save_pretrained(folder, **extra)
        tokenizer.save_pretrained(folder)


KIND = StageKind(
    name="pretrain",
    settings=PretrainSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="eval/perplexity",
    version=1,
)
