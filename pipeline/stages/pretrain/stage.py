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
from typing import TYPE_CHECKING, Any

from data.errors import HandOverError
from pipeline.contract.kind import StageKind
from pipeline.stages.checks import require_texts
from pipeline.stages.pretrain.settings import PretrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.training.language_model import LmTrainer


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
    from pipeline.models.load import load_tokenizer
    from pipeline.models.saving import try_saving
    from pipeline.training.corpus import prepare_corpus
    from pipeline.training.language_model import LmTrainer
    from pipeline.training.loop import Rhythm, run_loop

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
        settings=settings,
        seed=context.seed,
        heldout=corpus.heldout,
    )
    steps = trainer.total_steps
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
    from pipeline.models.architectures import build_policy, vocabulary_size
    from pipeline.models.load import context_length, load_policy
    from pipeline.models.trials import require_causal

    settings = context.settings
    if settings.model is None:
        model = build_policy(settings.architecture, settings.shape, tokenizer, seed=context.seed)
    else:
        model = load_policy(context.input("model"), trust_remote_code=settings.trust_remote_code)
        require_causal(model, settings.model)
        room = context_length(model)
        if room is not None and settings.context_length > room:
            raise HandOverError(
                f"stage {context.name}: context_length is {settings.context_length} tokens, a "
                f"{type(model).__name__} of {settings.model} takes {room}; lower it"
            )
        rows = model.get_input_embeddings().weight.shape[0]
        if vocabulary_size(tokenizer) > rows:
            raise HandOverError(
                f"stage {context.name}: the tokenizer has {vocabulary_size(tokenizer)} tokens, "
                f"{settings.model} an embedding of {rows}; use the model's own tokenizer"
            )
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


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
