"""Stage `pretrain`: a language model, from scratch or continued from a checkpoint.

`objective` is what is learned of the text: the next token (`causal`), hidden tokens (`masked`:
BERT, RoBERTa, ALBERT), hidden spans (`span_corruption`: T5), or the text as it was (`denoising`:
BART). What is hidden is drawn from seed, row and epoch, anew each epoch; of held-out text it is the
same each time. `data/text/objectives` says where each departs from its paper.

Text is tokenised once into chunks of one context length on disk, documents set apart by
`<|endoftext|>` (else the end-of-sequence token), and learned in an order that follows from seed
and epoch alone. AdamW with betas 0.9, 0.95 (or Adafactor: Shazeer and Stern 2018; Raffel et al.
2020), weight decay on matrices, gradients clipped at 1, cosine after a linear warm-up (Brown et
al. 2020, appendix B; Touvron et al. 2023, section 2.2).

Departures: dropout is 0 in every architecture; a batch that reaches beyond an epoch
is filled from the next; what fills no chunk at the end of the text is left out, and said.

Leaves `model/`. `work/` holds the chunks until the stage is done.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data.errors import HandOverError, ModelError, SourceError
from data.text.objectives import ObjectiveName
from pipeline.contract.heads import AUTO_CLASSES, Head
from pipeline.contract.kind import StageKind
from pipeline.stages.checks import require_shared_batch, require_texts
from pipeline.stages.pretrain.settings import PretrainSettings, TextSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.training.corpus import Corpus
    from pipeline.training.language_model import LmTrainer
    from pipeline.training.objectives.masked import Masked
    from pipeline.training.objectives.rows import Asking, Objective
    from pipeline.training.objectives.seq2seq import Denoising, SpanCorruption

CLASSES: Mapping[str, tuple[Head, str]] = {
    "masked": ("masked", "an encoder"),
    "span_corruption": ("seq2seq", "an encoder-decoder"),
    "denoising": ("seq2seq", "an encoder-decoder"),
}
"""Class that learns each objective but `causal`, and what it is called."""
COUNTED = 4096
"""Rows whose targets are counted for what frequencies alone predict, at most."""


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
    require_shared_batch(hand, settings.batch_size)
    if settings.model is not None:
        _check_start(settings, settings.model, hand)
    _check_tokenizer(settings, hand)


def _check_tokenizer(settings: PretrainSettings, hand: HandOver) -> None:
    """Refuse a tokenizer that is learned for another objective."""
    made = None if settings.tokenizer is None else hand.settings(settings.tokenizer)
    made_for = getattr(made, "objective", None)
    if settings.objective == "causal" or made_for is None or getattr(made, "adopt", None):
        return  # what an adopted one lacks is seen when it is there
    sentinels = settings.objective == "span_corruption"
    if made_for == "causal" or sentinels != (made_for == "span_corruption"):
        raise HandOverError(
            f"stage {hand.name}: objective {settings.objective} needs a tokenizer made for it, "
            f"{settings.tokenizer} is for {made_for}; set `objective: {settings.objective}` there"
        )


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
    require_learner(hand, "model", start, settings, settings.objective)


def require_learner(
    hand: HandOver, setting: str, named: str, settings: TextSettings, objective: ObjectiveName
) -> None:
    """Refuse a checkpoint that does not learn by an objective, or takes shorter rows.

    Raises:
        HandOverError: naming setting and checkpoint.
    """
    hand.require_fits_context(named, settings.context_length, "context_length")
    head: Head = "causal"
    if objective == "causal":
        hand.require_writer(named, setting, f"{settings.kind} takes a causal language model")
    else:
        head, what = CLASSES[objective]
        facts = hand.facts(named)
        if facts is not None and facts.encoder_decoder != (head == "seq2seq"):
            raise HandOverError(
                f"stage {hand.name}: {setting}: {named} is a "
                f"{facts.architecture or facts.model_type}; objective {objective} is learned by "
                f"{what}; name one"
            )
    hand.require_class(
        named, setting, head, way_out="name another model", trust=settings.trust_remote_code
    )


def run(context: StageContext[PretrainSettings]) -> dict[str, float | int | str]:
    """Pack the text, train, judge and save; return the final metrics."""
    from pipeline.models.load import load_tokenizer

    settings = context.settings
    tokenizer = load_tokenizer(
        context.input("tokenizer" if settings.tokenizer is not None else "model"),
        trust_remote_code=settings.trust_remote_code,
    )
    model = _model(context, tokenizer)
    objective = _objective(context, model, tokenizer)
    return learn(context, model, tokenizer, asks=objective)


def learn(
    context: StageContext[Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    asks: Asking | None,
    learns: Objective | None = None,
) -> dict[str, float | int | str]:
    """Pack the text of `TextSettings`, train, judge and save; return the final metrics.

    Args:
        context: of the stage.
        model: what is trained.
        tokenizer: is published with it.
        asks: what makes rows of the text, None for the next token.
        learns: what is learned of them; as `asks` has it when not given.
    """
    from pipeline.models.saving import try_saving
    from pipeline.training.corpus import prepare_corpus
    from pipeline.training.language_model import LmTrainer
    from pipeline.training.loop import Rhythm, run_loop

    settings = context.settings
    try_saving(context, model, tokenizer)
    length = settings.context_length
    corpus = prepare_corpus(
        context,
        copy.deepcopy(tokenizer),  # to use one forgets how it fills up and cuts; it is published
        train=settings.train,
        heldout=settings.heldout,
        heldout_share=settings.heldout_share,
        context_length=length if asks is None else asks.raw_length(length),
        vocab_size=model.config.vocab_size,
    )
    trainer = LmTrainer(
        model=model,
        train=corpus.train,
        settings=settings,
        seed=context.seed,
        heldout=corpus.heldout,
        objective=learns or asks,
    )
    _require_documents(context, corpus)
    size = _told_size(context, trainer)
    last = run_loop(
        context,
        Rhythm(size["steps"], settings.log_every, settings.evaluate_every, settings.save_every),
        step=trainer.step,
        save=trainer.save,
        load=trainer.load,
        evaluate=None if corpus.heldout is None else trainer.evaluate,
        label=f"{settings.kind}ing",
    )
    _save(context, trainer, tokenizer)
    return {
        **last,
        **_floors(context, trainer, asks, last),
        **corpus.counts,
        **size,
    }


def _told_size(context: StageContext[Any], trainer: LmTrainer) -> dict[str, int]:
    """Say how much is trained on how much, and return it."""
    settings, steps = trainer.settings, trainer.total_steps
    learned = steps * settings.batch_size * settings.context_length
    parameters = trainer.model.num_parameters()
    context.say(
        f"{parameters:,} parameters, {steps:,} steps, {learned:,} tokens "
        f"({steps * settings.batch_size / len(trainer.train):.2f} epochs)"
    )
    return {"parameters": parameters, "steps": steps, "tokens": learned}


def _model(
    context: StageContext[PretrainSettings], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Return the model to train: new, or the checkpoint's."""
    from pipeline.models.architectures import build_policy, vocabulary_size
    from pipeline.models.load import context_length, load_denoiser, load_policy
    from pipeline.models.trials import require_causal

    settings = context.settings
    auto_class = _auto_class(settings)
    if settings.model is None:
        model = build_policy(
            settings.architecture,
            settings.shape,
            tokenizer,
            seed=context.seed,
            auto_class=auto_class,
        )
    else:
        trust = settings.trust_remote_code
        if settings.objective == "causal":
            model = load_policy(context.input("model"), trust_remote_code=trust)
            require_causal(model, settings.model)
        else:
            model = load_denoiser(context.input("model"), auto_class, trust_remote_code=trust)
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


def _auto_class(settings: PretrainSettings) -> str:
    """Return the class of transformers that a model is of."""
    if settings.masking.next_sentence:
        return "AutoModelForPreTraining"
    return AUTO_CLASSES[CLASSES.get(settings.objective, ("causal", ""))[0]]


def _objective(
    context: StageContext[PretrainSettings],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Masked | SpanCorruption | Denoising | None:
    """Return what is learned, None for the next token; refuse what does not fit.

    Raises:
        ModelError: tokenizer or model lacks what the objective needs.
    """
    from data.text.objectives.denoising import Noise
    from data.text.objectives.span_corruption import span_counts
    from data.text.objectives.special_tokens import require_equipped
    from pipeline.training.objectives import masked, seq2seq

    settings, name = context.settings, context.settings.objective
    if name == "causal":
        return None
    spans = settings.spans.model_dump()
    # Of a row as long as twice its context there are no more spans than of one that is packed.
    needed = span_counts(2 * settings.context_length, **spans).spans
    named = settings.tokenizer or settings.model or ""
    require_equipped(tokenizer, name, source=named, spans=needed)
    source = settings.model or settings.architecture
    if name == "masked":
        masked.require_encoder(model, source)
        if settings.masking.next_sentence and not masked.has_pairs(model):
            raise ModelError(
                f"masking.next_sentence: {source} is a {type(model).__name__}, which has no head "
                "for pairs of sentences; use bert, or set it to false"
            )
        return masked.Masked(model, tokenizer, context.seed, **settings.masking.model_dump())
    seq2seq.require_encoder_decoder(model, source, name)
    if name == "span_corruption":
        return seq2seq.SpanCorruption(model, tokenizer, context.seed, **spans)
    forced = getattr(model.generation_config, "forced_bos_token_id", None)
    if forced is not None:
        context.say(
            f"what the model writes begins with {tokenizer.convert_ids_to_tokens(forced)}, as its "
            "targets do: forced_bos_token_id of generation_config.json"
        )
    return seq2seq.Denoising(
        model, tokenizer, context.seed, noise=Noise(**settings.noise.model_dump())
    )


def _require_documents(context: StageContext[Any], corpus: Corpus) -> None:
    """Refuse to learn which pairs follow each other where all do."""
    if context.settings.masking.next_sentence and corpus.train.about.documents < 2:
        raise SourceError(
            f"stage {context.name}: masking.next_sentence takes half of the pairs from other "
            "documents, `train` has one; give more, or set it to false"
        )


def _floors(
    context: StageContext[Any],
    trainer: LmTrainer,
    asks: Asking | None,
    last: Mapping[str, float],
) -> dict[str, float]:
    """Return what a reader without language tells of held-out text; none for the next token."""
    from pipeline.training.objectives.rows import floors, spread_rows

    if asks is None or trainer.heldout is None:
        return {}
    counted = spread_rows(trainer.train, COUNTED, epoch=0)
    found = floors(asks, counted, trainer.heldout_rows())
    context.say(
        f"held out: loss {last['eval/loss']:.3f}, accuracy {last['eval/accuracy']:.1%}; by "
        f"frequency alone {found['unigram_loss']:.3f}, {found['unigram_accuracy']:.1%}; by "
        f"copying {found['copy_loss']:.3f}, {found['copy_accuracy']:.1%}"
    )
    return {f"eval/{name}": value for name, value in found.items()}


def _save(
    context: StageContext[Any],
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
