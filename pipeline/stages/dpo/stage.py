"""Stage `dpo`: trains a policy on preferences, without a reward model.

Reference: Rafailov et al. 2023 (DPO): batches of 64 pairs, learning rate 1e-6 for 2.8B, beta 0.1;
the reference is the SFT model.

TRL's DPOTrainer trains; departures from it stand in `trainer.py`. Departures from the paper: AdamW
and the schedule of all stages; of K ranked answers every pair is learned, in rounds that each
prompt gives one pair to, so that a prompt counts once whatever its K. Soft labels (`probabilities`
of rankings) decide by chance, anew in each round, which answer of a pair is the chosen one.

Leaves `model/`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data.errors import SourceError
from data.words import counted
from pipeline.contract.kind import StageKind
from pipeline.contract.settings import external_location, is_external, references
from pipeline.stages.checks import require_rankings, require_reference
from pipeline.stages.dpo.settings import DpoSettings, PreferenceSettings
from pipeline.stages.reward.rows import rankings_source, read_rows
from pipeline.training.settings import micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.stages.dpo.trainer import Learned, PreferenceTrainer

    Build = Callable[..., PreferenceTrainer]


def check(settings: PreferenceSettings, hand: HandOver) -> None:
    """Refuse a policy that can't be trained on these rankings, and a reference of another kind.

    Raises:
        HandOverError: with the values that do not fit.
    """
    hand.require_tokenizer_for(settings.model, settings.tokenizer)
    if settings.max_length is not None:
        hand.require_fits_context(settings.model, settings.max_length, "max_length")
    why = "preferences are learned by a causal language model"
    hand.require_writer(settings.model, "model", why)
    hand.require_class(
        settings.model, "model", "causal", way_out="name another model",
        trust=settings.trust_remote_code,
    )  # fmt: skip
    require_reference(hand, settings.model, settings.reference)
    micro_batches(settings.batch_size, settings.micro_batch_size, hand.processes)
    for field, sources in (("train", settings.train), ("heldout", settings.heldout)):
        require_rankings(hand, field, sources)
    for field, (target, mark) in references(settings).items():
        if mark.provides == "rankings" and is_external(target):
            source = rankings_source(external_location(target))
            if source.path is not None:
                require_rankings(hand, field, (source,))


def run(context: StageContext[DpoSettings]) -> dict[str, float | int | str]:
    """Train and publish; return the final metrics."""
    from pipeline.stages.dpo.trainer import build_trainer

    return learn(context, build_trainer)


def learn(context: StageContext[Any], build: Build) -> dict[str, float | int | str]:
    """Train a policy on pairs by one of TRL's trainers, and publish it.

    Args:
        context: of the stage.
        build: returns the trainer, as `dpo.trainer.build_trainer` does.
    """
    from pipeline.models.load import load_policy
    from pipeline.training.trl import load_start, quiet_libraries

    settings = context.settings
    with quiet_libraries(context.say):
        model, tokenizer = load_start(context)
        reference = load_policy(
            context.input("model" if settings.reference is None else "reference"),
            trust_remote_code=settings.trust_remote_code,
        )
        # To use a tokenizer forgets how it fills up and cuts; the one that came is published.
        rows = _pairs(context, model, copy.deepcopy(tokenizer))
        shape = micro_batches(settings.batch_size, settings.micro_batch_size, context.world_size)
        trainer = build(context, model, reference, tokenizer, rows, shape)
        trainer.run()
    metrics: dict[str, Any] = {
        "train/loss": trainer.last_train_loss,
        **{f"eval/{name}": number for name, number in trainer.judged.items()},
        "steps": trainer.total_steps,
        "n_rankings": len(rows.train.of),
        "n_pairs": len(rows.train.pairs),
        "n_heldout": len(rows.heldout.of),
    }
    return {name: number for name, number in metrics.items() if number is not None}


def _pairs(
    context: StageContext[Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Learned:
    """Read the rankings, make pairs of them, and say what was lost on the way.

    Raises:
        SourceError: nothing is left to learn, or too much was too long.
    """
    from pipeline.stages.dpo.pairs import PairMaker
    from pipeline.stages.dpo.trainer import Learned
    from pipeline.training.trl import longest_row

    settings, read = context.settings, read_rows(context)
    maker = PairMaker(tokenizer, longest_row(context, model), settings.ties)
    rows = Learned(maker.pairs(read.training), maker.pairs(read.judged, soft=False))
    pairs, rankings = len(rows.train.pairs), len(rows.train.of)
    context.say(
        f"{counted(rankings, 'ranking')} to learn, of {counted(pairs, 'pair')}; "
        f"{len(rows.heldout.of)} to judge by"
    )
    for line in maker.lines():
        context.say(line)
    if rows.train.per_epoch > pairs:
        context.say(
            f"an epoch has {rows.train.rounds} pairs of each ranking, {rows.train.per_epoch:,} in "
            "all: those of rankings with fewer come again, so that a prompt counts once"
        )
    maker.require_few_too_long(settings.max_too_long_share, stage=context.name)
    if not rows.train.pairs:
        raise SourceError(
            f"stage {context.name}: no ranking holds two completions of different rank that fit "
            "max_length; get more rankings, or ones that tell completions apart"
        )
    return rows


KIND = StageKind(
    name="dpo",
    settings=DpoSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="eval/accuracy",
    version=1,
)
