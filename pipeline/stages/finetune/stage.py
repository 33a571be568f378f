"""Stage `finetune`: classes of texts, answers in a text, or tags of words, learned by a head.

Reference: Devlin et al. 2019 (BERT), sections 4.1, 4.2 and 5.3, appendix A.3: a head of one layer
on any checkpoint for which transformers has one, all weights trained, 2 to 4 epochs of 16 or 32
rows, learning rate 2e-5 to 5e-5; models of some million parameters learn from 1e-4 to 1e-3.

Departures: dropout is 0; clipping as in all stages; the loss is a mean over all that a step's rows
ask for (a row's class, an answer's two ends, the tokens of its words), whatever their micro-batch
or process; all tokens of a word are tagged, not the first alone. Labels are those of the rows to
learn, kept in `id2label` of the configuration.

Leaves `model/`, which plain transformers loads with its head, `quality.json` (figures with 95 %
intervals beside a floor) and `heldout.jsonl` (every held-out row with what is said of it).
"""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING

from data.errors import HandOverError, ModelError, SourceError
from data.json_lines import append_json_lines
from data.storage import storage_errors, write_atomically
from data.words import counted
from pipeline.contract.heads import AUTO_CLASSES
from pipeline.contract.heads import Head as ClassHead
from pipeline.contract.kind import StageKind
from pipeline.stages.checks import require_readable, require_shared_batch
from pipeline.stages.finetune.rows import WANTED, Rows, converter, read_rows
from pipeline.stages.finetune.settings import LONGEST, FinetuneSettings, HeadName

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.stages.finetune.heads import Example, Head
    from pipeline.stages.finetune.trainer import HeadTrainer

HEADS: dict[HeadName, ClassHead] = {"classify": "sequence", "span": "question", "tag": "token"}
"""The head of transformers that learns each of ours."""


def check(settings: FinetuneSettings, hand: HandOver) -> None:
    """Refuse a checkpoint without such a head, a tokenizer that does not fit, rows of another kind.

    Raises:
        HandOverError: what does not fit each other.
        SourceError: a source can't be read, or holds other rows.
    """
    hand.require_tokenizer_for(settings.model, settings.tokenizer)
    if settings.max_length is not None:
        hand.require_fits_context(settings.model, settings.max_length, "max_length")
    hand.require_class(
        settings.model, "model", HEADS[settings.head], trust=settings.trust_remote_code,
        way_out=f"head {settings.head} needs another architecture",
    )  # fmt: skip
    require_shared_batch(hand, settings.batch_size)
    for field, sources in (("train", settings.train), ("heldout", settings.heldout)):
        wanted = WANTED[settings.head][1]
        require_readable(hand, field, settings.read_as(sources), converter(settings.head), wanted)


def run(context: StageContext[FinetuneSettings]) -> dict[str, float | int | str]:
    """Read the rows, train, judge and save; return the final metrics."""
    from pipeline.models.load import load_tokenizer
    from pipeline.models.saving import try_saving
    from pipeline.stages.finetune.heads import require_blind_to_padding
    from pipeline.stages.finetune.trainer import HeadTrainer
    from pipeline.training.loop import Rhythm, run_loop

    settings = context.settings
    rows = read_rows(context)
    tokenizer = load_tokenizer(
        context.input("tokenizer" if settings.tokenizer is not None else "model"),
        trust_remote_code=settings.trust_remote_code,
    )
    model, head = _start(context, rows, tokenizer)
    try_saving(context, model, tokenizer)
    learned, heldout = head.examples(rows.training), head.examples(rows.heldout)
    _tell_losses(context, rows, head, learned, heldout)
    require_blind_to_padding(model, head, [w for e in learned[:50] for w in e.windows])
    trainer = HeadTrainer(model, head, learned, settings, context.seed)
    context.say(f"{model.num_parameters():,} parameters, {counted(trainer.total_steps, 'step')}")
    last = run_loop(
        context,
        Rhythm(
            trainer.total_steps, settings.log_every, settings.evaluate_every, settings.save_every
        ),
        step=trainer.step,
        save=trainer.save,
        load=trainer.load,
        evaluate=lambda: _judge(context, rows, trainer, heldout, write=False),
        label=f"head {settings.head}",
    )
    final = _judge(context, rows, trainer, heldout, write=True)
    _save(context, trainer, tokenizer)
    return {
        **last,
        **final,
        "n_rows": len(learned),
        "n_heldout": len(heldout),
        "n_windows": len(trainer.windows),
        "n_truncated": head.lost["cut"],
        "parameters": model.num_parameters(),
        "steps": trainer.total_steps,
    }


def _start(
    context: StageContext[FinetuneSettings], rows: Rows, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, Head]:
    """Return the model with its head, and what makes batches for it."""
    from pipeline.models.load import context_length, load_with_head
    from pipeline.stages.finetune import heads

    settings = context.settings
    source, name = context.input("model"), settings.head
    if name != "classify" and not tokenizer.is_fast:
        raise ModelError(
            f"stage {context.name}: the tokenizer of {settings.tokenizer or settings.model} does "
            f"not tell where its tokens stand in a text, which head {name} needs; use a fast one"
        )
    kind = heads.KINDS[name]
    model, kept = load_with_head(
        source, AUTO_CLASSES[HEADS[name]], kind.classes(rows.labels), seed=context.seed,
        trust_remote_code=settings.trust_remote_code,
    )  # fmt: skip
    context.say("the head of the checkpoint is trained on" if kept else "the head is new")
    _require_room(context, model, tokenizer)
    segments = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    if not segments and "token_type_ids" in tokenizer.model_input_names:
        # Of whoever loads both: the model has no embedding for the second of two texts.
        tokenizer.model_input_names = [
            name for name in tokenizer.model_input_names if name != "token_type_ids"
        ]
    longest = settings.max_length or min(LONGEST, context_length(model) or LONGEST)
    head: Head = kind(copy.deepcopy(tokenizer), rows.labels, longest, segments)
    if isinstance(head, heads.Span):
        head.stride = longest // 4 if settings.stride is None else settings.stride
        head.max_answer = settings.max_answer_tokens
    model.config.pad_token_id = tokenizer.pad_token_id
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model, head


def _require_room(
    context: StageContext[FinetuneSettings],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse a tokenizer with more tokens than the model has rows, and texts longer than it."""
    from pipeline.models.architectures import vocabulary_size
    from pipeline.models.load import context_length

    settings = context.settings
    ids, places = vocabulary_size(tokenizer), model.get_input_embeddings().weight.shape[0]
    if ids > places:
        raise HandOverError(
            f"stage {context.name}: the tokenizer has {ids} tokens, {settings.model} an embedding "
            f"of {places}; use the model's own tokenizer"
        )
    room = context_length(model)
    if settings.max_length is not None and room is not None and settings.max_length > room:
        raise HandOverError(
            f"stage {context.name}: max_length is {settings.max_length} tokens, a "
            f"{type(model).__name__} of {settings.model} takes {room}; lower it"
        )


def _tell_losses(
    context: StageContext[FinetuneSettings],
    rows: Rows,
    head: Head,
    learned: list[Example],
    heldout: list[Example],
) -> None:
    """Say what rows lost on the way; stop where that is all, or more than the recipe allows."""
    for what, count in head.lost.items():
        if count and what != "cut":
            context.say(f"{count:,} {what}")
    if not learned or not heldout:
        raise SourceError(
            f"stage {context.name}: no question leaves its context room within max_length "
            f"{head.max_length}; raise it, or lower stride"
        )
    total = len(rows.training) + len(rows.heldout)
    cut = head.lost["cut"]
    if not cut:
        return
    told = f"{cut} of {total} texts ({cut / total:.1%}) are longer than {head.max_length} tokens"
    if cut / total > context.settings.max_truncated_share:
        raise SourceError(
            f"stage {context.name}: {told}, more than max_truncated_share allows; raise "
            "max_length, or that share to cut them at their end"
        )
    context.say(f"{told} and were cut at their end")


def _judge(
    context: StageContext[FinetuneSettings],
    rows: Rows,
    trainer: HeadTrainer,
    heldout: list[Example],
    *,
    write: bool,
) -> dict[str, float]:
    """Return the figures of held-out rows; at the end write them and the rows, and say them."""
    from pipeline.stages.finetune.figures import figures, floor_predictions

    judged = [example.row for example in heldout]
    said, floor = trainer.predict(heldout, exact=write), floor_predictions(rows.training, judged)
    found = figures(judged, said, floor, rows.labels, seed=context.seed)
    if write and context.main_process:
        content = {
            "head": context.settings.head,
            "n": len(judged),
            "labels": rows.labels,
            "figures": {
                name: {"value": each.value, "ci95": each.ci95} for name, each in found.items()
            },
        }
        path = context.folder / "heldout.jsonl"
        path.unlink(missing_ok=True)
        rows_said = zip(judged, said, floor, strict=True)
        append_json_lines(
            path,
            [
                {**dataclasses.asdict(row), "said": mine, "floor": theirs}
                for row, mine, theirs in rows_said
            ],
        )
        write_atomically(context.folder / "quality.json", json.dumps(content, indent=2) + "\n")
    if write:
        f1 = found["f1"]
        low, high = f1.ci95 or (f1.value, f1.value)
        context.say(
            f"held out: F1 {f1.value:.3f} [{low:.3f}, {high:.3f}]; without reading "
            f"{found['floor_f1'].value:.3f}"
        )
    return {f"eval/{name}": each.value for name, each in found.items() if each.value is not None}


def _save(
    context: StageContext[FinetuneSettings],
    trainer: HeadTrainer,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    from pipeline.models.load import save_model

    gathered = trainer.weights()
    if context.main_process:
        folder = context.folder / "model"
        with storage_errors(folder):
            save_model(trainer.model, tokenizer, folder, weights=gathered)


KIND = StageKind(
    name="finetune",
    settings=FinetuneSettings,
    run=run,
    check=check,
    provides=frozenset({"classifier", "tokenizer"}),
    main_metric="eval/f1",
    version=1,
)
