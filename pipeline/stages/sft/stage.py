"""Stage `sft`: teaches a base model to answer, from demonstrations.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.5 and appendix C.1: 16 epochs, learning rate
9.65e-6 with a cosine down to 10 %, batches of 32, residual dropout of 0.2, and of all epochs the
checkpoint that a reward model scores best.

TRL's SFTTrainer trains. Departures from it, each told in `trainer.py`: rows come tokenised, with
the loss on the assistant's tokens alone; batches are of rows of similar length, in an order that
depends on seed and epoch alone; resume states are atomic; the held-out loss is the mean over
tokens. Of an encoder-decoder a prompt goes to the encoder and its response, which is learned, to
the decoder; every answer of a conversation is a row. With `pretraining` rows of raw text, all of
which is learned, stand among the demonstrations, as in InstructGPT's fine-tuning before PPO; the
held-out loss is that of demonstrations. With `tools` the results of calls in answers
(`24>>` of `<<48/2=24>>`) are not learned, since sampling puts them there. Departures from the
paper: the best candidate is the one of lowest held-out loss, until a `select` stage names another.

Leaves `model/` (the best candidate), `candidates/<step>/` when there is more than one, and
`candidates.json`: step, held-out loss and folder of each.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from data.errors import HandOverError, RecipeError, SourceError
from data.words import counted
from pipeline.contract.kind import StageKind
from pipeline.contract.settings import rows_at_most
from pipeline.contract.sources import DEMONSTRATIONS, TEXTS, as_it_is, demonstration
from pipeline.stages.checks import require_corpus, require_demonstrations, require_texts
from pipeline.stages.sft.settings import MAX_HELDOUT, SftSettings
from pipeline.training.settings import micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.stages.sft.rows import Results, Rows
    from pipeline.stages.sft.trainer import StageTrainer


def check(settings: SftSettings, hand: HandOver) -> None:
    """Refuse a model that can't be fine-tuned on these settings.

    Raises:
        HandOverError: with the values that do not fit.
    """
    hand.require_tokenizer_for(settings.model, settings.tokenizer)
    if settings.max_length is not None:
        hand.require_fits_context(settings.model, settings.max_length, "max_length")
    why = "fine-tuning starts from a language model that writes"
    hand.require_writer(settings.model, "model", why, encoder_decoder=True)
    paired = hand.encoder_decoder(settings.model)
    if paired and settings.packing:
        raise HandOverError(
            f"stage {hand.name}: packing is not for an encoder-decoder ({settings.model}), whose "
            "decoder would see what its encoder read of other demonstrations; set packing: false"
        )
    if paired and settings.tools is not None:
        raise HandOverError(
            f"stage {hand.name}: tools are not for the fine-tuning of an encoder-decoder "
            f"({settings.model}), which would learn their results, too; leave out `tools`"
        )
    if paired and settings.pretraining is not None:
        raise HandOverError(
            f"stage {hand.name}: pretraining is not for an encoder-decoder ({settings.model}), "
            "which writes answers to what it reads; leave out `pretraining`"
        )
    hand.require_class(
        settings.model, "model", "seq2seq" if paired else "causal", way_out="name another model",
        trust=settings.trust_remote_code,
    )  # fmt: skip
    micro_batches(settings.batch_size, settings.micro_batch_size, hand.processes)
    require_demonstrations(hand, "train", settings.train)
    require_demonstrations(hand, "heldout", settings.heldout)
    require_corpus(hand, settings.retrieve)
    if settings.pretraining is not None:
        require_texts(hand, "pretraining.train", settings.pretraining.train)


def run(context: StageContext[SftSettings]) -> dict[str, float | int | str]:
    """Train, keep the candidates and publish the best; return the final metrics."""
    from pipeline.stages.sft.trainer import build_trainer
    from pipeline.training.trl import load_start, quiet_libraries

    with quiet_libraries(context.say):
        model, tokenizer = load_start(context)
        # To use a tokenizer forgets how it fills up and cuts; the one that came is published.
        rows = _rows(context, model, copy.deepcopy(tokenizer))
        _end_where_taught(context, model, tokenizer, rows)
        shape = micro_batches(
            context.settings.batch_size, context.settings.micro_batch_size, context.world_size
        )
        trainer = build_trainer(context, model, tokenizer, rows, shape)
        trainer.run()
        return _publish(context, trainer, rows)


def _rows(
    context: StageContext[SftSettings], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """Read, split and tokenise the demonstrations, and say what was lost on the way."""
    from pipeline.models.load import context_length
    from pipeline.models.seq2seq import is_encoder_decoder, response_room
    from pipeline.stages.sft.rows import prepare_rows
    from pipeline.training.trl import longest_row

    settings, pairs = context.settings, is_encoder_decoder(model)
    max_length = longest_row(context, model)
    if pairs:
        _say_opening(context, model, tokenizer)
        limit = context_length(model)
        max_length = min(max_length, response_room(limit, 0, encoder_decoder=True) or max_length)
    results = _results(settings)
    rows = prepare_rows(
        [*context.read("train", settings.train, demonstration, wanted=DEMONSTRATIONS)],
        [*context.read("heldout", settings.heldout, demonstration, wanted=DEMONSTRATIONS)],
        tokenizer,
        max_length=max_length,
        too_long=settings.too_long,
        max_too_long_share=settings.max_too_long_share,
        heldout_share=settings.heldout_share,
        max_heldout=rows_at_most(settings.heldout, MAX_HELDOUT),
        seed=context.seed,
        say=context.say,
        pairs=pairs,
        shots=settings.shots,
        split=results,
        retriever=settings.retriever(context.say),
    )
    if results is not None:
        told = counted(results.found, "result")
        context.say(f"{told} of tools in answers, which sampling gives, are not learned")
    if not rows.train:
        raise SourceError(f"stage {context.name}: no demonstration is left to learn from")
    if settings.candidates > 1 and not rows.heldout:
        raise RecipeError(
            f"stage {context.name}: {settings.candidates} candidates but nothing held out to "
            "choose by; set heldout or heldout_share"
        )
    return _among_texts(context, rows, tokenizer)


def _among_texts(
    context: StageContext[SftSettings], rows: Rows, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """Return rows with those of `pretraining` among them."""
    from pipeline.rl.pretraining_mix import text_rows
    from pipeline.stages.sft.rows import with_texts

    given = context.settings.pretraining
    if given is None:
        return rows
    texts = text_rows(
        context.read("pretraining.train", given.train, as_it_is, wanted=TEXTS),
        tokenizer=tokenizer,
        row_tokens=min(given.row_tokens, rows.max_length),
    )
    mixed = with_texts(rows, texts, share=given.share, seed=context.seed)
    context.say(f"{mixed.texts:,} rows of raw text among them, drawn from {len(texts):,}")
    return mixed


def _results(settings: SftSettings) -> Results | None:
    """Return what finds the results of calls in answers."""
    if settings.tools is None:
        return None
    from data.text.inline_calls import split_calls
    from pipeline.stages.sft.rows import Results

    return Results(partial(split_calls, names=settings.tools.names))


def _say_opening(
    context: StageContext[SftSettings], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Say what the decoder behind an encoder is given before each response, and never learns."""
    from pipeline.models.seq2seq import decoder_opening

    names = " ".join(tokenizer.convert_ids_to_tokens(decoder_opening(model)))
    context.say(f"prompts go to the encoder; the decoder is given {names} before each response")


def _end_where_taught(
    context: StageContext[SftSettings],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
) -> None:
    """Have the model's generation end at the tokens that end the answers it learns."""
    from pipeline.models.load import eos_ids

    known = set(eos_ids(tokenizer, model))
    if not rows.ends or known & rows.ends or model.generation_config is None:
        return
    model.generation_config.eos_token_id = sorted(known | rows.ends)
    names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(rows.ends)))
    context.say(
        f"the chat template ends answers with {names}, at which this model did not end; it is "
        "added to the end tokens of its generation_config.json"
    )


def _publish(
    context: StageContext[SftSettings], trainer: StageTrainer, rows: Rows
) -> dict[str, float | int | str]:
    best = trainer.publish(context.folder)
    metrics: dict[str, Any] = {
        "train/loss": trainer.last_train_loss,
        "best_step": best.step,
        "steps": trainer.total_steps,
        "candidates": len(trainer.candidates),
        "n_train": len(rows.train),
        "n_heldout": len(rows.heldout),
        "n_tokens": sum(len(row.ids) for row in rows.train),
        "n_cut": rows.cut,
        "n_dropped": rows.dropped,
        "n_unlearnable": rows.unlearnable,
    }
    if rows.texts:
        metrics["n_texts"] = rows.texts
    if best.loss is not None:
        metrics["eval/loss"] = best.loss
    return {key: value for key, value in metrics.items() if value is not None}


KIND = StageKind(
    name="sft",
    settings=SftSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="eval/loss",
    version=1,
)
