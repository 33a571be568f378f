"""Stage `reward`: trains a reward model on rankings, judges it, and sets its bias.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.5 and appendix C.2: 6B parameters, one epoch,
64 prompts a batch with all their pairs, learning rate 9e-6 with a cosine down to 10 %. Smaller
models want more: Huang et al. 2024 (N+) took 3e-6 for 1B on 92k pairs, a model of some million
parameters takes 1e-4 to 1e-3.

Departures: prompts whose completions all tie are left out of the batches; clipping of the
gradient norm at 1 is ours; the head starts as in N+.

Rankings with soft labels (`probabilities`, as `consolidation: soft` writes, or `probability` of
a chosen/rejected pair) are learnt by these, see `reward.learned.losses`; accuracy is told by the
ranks.

Leaves `model/`, `quality.json` (what the report says of the model), and what its figures can be
counted again from: `heldout.jsonl`, every held-out pair with its scores, and
`demonstrations.jsonl`, those of the bias. With `lora` the adapter is merged into `model/`, and
stands in `adapter/` too, with its head and the digest of its trunk.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from data.errors import HandOverError, SourceError
from data.json_lines import append_json_lines, write_json_lines
from data.storage import storage_errors, write_atomically
from pipeline.contract.kind import StageKind
from pipeline.contract.settings import (
    Lora,
    external_location,
    is_external,
    references,
    rows_at_most,
)
from pipeline.contract.sources import DEMONSTRATIONS, demonstration
from pipeline.stages.checks import require_corpus, require_demonstrations, require_rankings
from pipeline.stages.reward.rows import RankingRows, rankings_source, read_rows, report_rows
from pipeline.stages.reward.settings import MAX_DEMONSTRATIONS, RewardSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.records import Prompt, Ranking
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
    from pipeline.stages.reward.trainer import RankingTrainer
    from reward.learned.model import RewardModel
    from reward.network.lora import Trunk
    from reward.quality.pairs import ScoredRanking


def check(settings: RewardSettings, hand: HandOver) -> None:
    """Refuse a checkpoint that can't become a reward model.

    Raises:
        HandOverError: tokenizer and model do not fit, or the input is longer than the context.
    """
    hand.require_tokenizer_for(settings.model, settings.tokenizer)
    if settings.max_length is not None:
        hand.require_fits_context(settings.model, settings.max_length, "max_length")
    facts = hand.facts(hand.origin(settings.model))
    written = (facts.architecture if facts is not None else None) or ""
    paired = "ConditionalGeneration" in written
    if facts is not None and (facts.encoder_decoder or (paired and not facts.writes)):
        raise HandOverError(
            f"stage {hand.name}: model: {settings.model} is a {written or facts.model_type}, an "
            "encoder-decoder; a reward model starts from a causal or an encoder model"
        )
    hand.require_class(
        settings.model, "model", "sequence", trust=settings.trust_remote_code,
        way_out="start the reward model from another architecture",
    )  # fmt: skip
    for field, sources in (("train", settings.train), ("heldout", settings.heldout)):
        require_rankings(hand, field, sources)
    require_demonstrations(hand, "demonstrations", settings.demonstrations)
    require_corpus(hand, settings.retrieve)
    for field, (target, mark) in references(settings).items():
        if mark.provides == "rankings" and is_external(target):
            source = rankings_source(external_location(target))
            if source.path is not None:
                require_rankings(hand, field, (source,))


def run(context: StageContext[RewardSettings]) -> dict[str, float | int | str]:
    """Train, judge, set the bias and save; return the final metrics."""
    from pipeline.models.compile import compile_layers, refuse_sharded
    from pipeline.models.saving import try_saving
    from pipeline.stages.reward.trainer import RankingTrainer
    from pipeline.training.accelerator import make_accelerator
    from pipeline.training.loop import Rhythm, run_loop
    from reward.learned.batching import encode_rankings
    from reward.learned.model import RewardModel

    settings = context.settings
    accelerator = make_accelerator(bf16=False)  # the trainer casts by itself
    if settings.compile:
        refuse_sharded(accelerator.sharded or accelerator.deepspeed)
    rows = read_rows(context)
    model = RewardModel.start(
        context.input("model"),
        seed=context.seed,
        max_length=settings.max_length,
        tokenizer_source=context.input("tokenizer") if settings.tokenizer is not None else None,
        trust_remote_code=settings.trust_remote_code,
    )
    try_saving(context, model.module.classifier, model.tokenizer)
    trunk = None if settings.lora is None else _adapt(context, settings.lora, model)
    if settings.gradient_checkpointing:
        model.module.classifier.activation_checkpointing_enable({"use_reentrant": False})
    examples, dropped = encode_rankings(rows.training, encoder=model.encoder, ties=settings.ties)
    watched, _ = encode_rankings(rows.judged, encoder=model.encoder)
    report_rows(context, rows, dropped, model)
    truncated = model.encoder.truncated
    trainer = RankingTrainer(
        module=model.module,
        examples=examples,
        pad_id=model.pad_id,
        settings=settings,
        seed=context.seed,
        accelerator=accelerator,
    )
    if settings.compile:
        compile_layers(trainer.module, accelerator.device)
    judged = settings.evaluate_every > 0 and len(watched) > 0
    run_loop(
        context,
        Rhythm(trainer.total_steps, 1, settings.evaluate_every, settings.save_every),
        step=trainer.step,
        save=trainer.save,
        load=trainer.load,
        evaluate=partial(trainer.evaluate, watched) if judged else None,
        label="reward model",
    )
    summary = _judge(context, rows, model, trainer)
    _save(context, model, trainer, trunk)
    return {
        **summary,
        "steps": trainer.total_steps,
        "n_rankings": len(examples),
        "n_dropped_ties": dropped,
        "n_truncated": truncated,
    }


def _adapt(context: StageContext[RewardSettings], lora: Lora, model: RewardModel) -> Trunk:
    from reward.learned.on_trunk import adapt

    base = str(context.input("model"))
    trunk = adapt(model, base=base, **lora.model_dump(), seed=context.seed)
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.module.parameters())
    context.say(f"an adapter of rank {lora.rank}: {trained:,} of {total:,} parameters are trained")
    return trunk


def _judge(
    context: StageContext[RewardSettings],
    rows: RankingRows,
    model: RewardModel,
    trainer: RankingTrainer,
) -> dict[str, float]:
    """Set the bias, write what tells how good the model is, return the final metrics."""
    from reward.quality.calibration import demonstration_bias, demonstration_rows
    from reward.quality.judging import judge, summary, with_bag_of_words
    from reward.quality.length_rule import verdict
    from reward.quality.pairs import pair_rows

    shown = _demonstrations(context, model.tokenizer)
    raw = trainer.score([model.encoder.encode(*parts) for parts in shown], exact=True)
    calibration = demonstration_bias(raw)
    model.set_bias(calibration.bias)
    sets = {
        name: with_bag_of_words(_scored(rankings, model, trainer), rows.training)
        for name, rankings in (("eval_rankings", rows.evaluation), ("heldout", rows.heldout))
        if rankings
    }
    content = judge(sets, calibration)
    if content["n_pairs"] == 0:
        raise SourceError(
            f"stage {context.name}: all held-out completions tie, so that nothing tells how good "
            "the reward model is; hold out more prompts"
        )
    if context.main_process:
        write_atomically(context.folder / "quality.json", json.dumps(content, indent=2) + "\n")
        path = context.folder / "heldout.jsonl"
        path.unlink(missing_ok=True)
        for name, scored in sets.items():
            append_json_lines(path, pair_rows(name, scored))
        if shown:
            write_json_lines(
                context.folder / "demonstrations.jsonl", demonstration_rows(shown, raw)
            )
    words = content["bag_of_words"]["accuracy"]
    if words is not None:
        context.say(f"a bag of words learnt from the same rankings is right on {100 * words:.1f} %")
    context.say(str(verdict(content)))
    return summary(content)


def _scored(
    rankings: list[Ranking], model: RewardModel, trainer: RankingTrainer
) -> list[ScoredRanking]:
    from reward.learned.batching import encoded_completions
    from reward.quality.pairs import ScoredRanking

    sequences = [ids for r in rankings for ids in encoded_completions(r, model.encoder)]
    scores = iter(trainer.score(sequences, exact=True))
    return [ScoredRanking(r, [next(scores) + model.bias for _ in r.completions]) for r in rankings]


def _demonstrations(
    context: StageContext[RewardSettings], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Prompt, str]]:
    """Return the prompts and responses that the bias is taken from, prompts behind passages."""
    from reward.quality.calibration import demonstration_parts

    sources = context.settings.demonstrations
    read = context.read("demonstrations", sources, demonstration, wanted=DEMONSTRATIONS)
    rows = [*islice(read, rows_at_most(sources, MAX_DEMONSTRATIONS))]
    retriever = context.settings.retriever(context.say)
    if retriever is not None:
        rows = [retriever.demonstrated(row, tokenizer) for row in rows]
    return [*map(demonstration_parts, rows)]


def _save(
    context: StageContext[RewardSettings],
    model: RewardModel,
    trainer: RankingTrainer,
    trunk: Trunk | None,
) -> None:
    if trunk is not None:
        from reward.learned.on_trunk import save_models

        if context.main_process:
            with storage_errors(context.folder):
                save_models(model, trunk, context.folder)
        return
    weights = trainer.weights()
    if context.main_process:
        folder = context.folder / "model"
        with storage_errors(folder):
            model.save(folder, trained=True, state=weights)


KIND = StageKind(
    name="reward",
    settings=RewardSettings,
    run=run,
    check=check,
    provides=frozenset({"reward", "tokenizer"}),
    main_metric="eval/accuracy",
    version=1,
)
