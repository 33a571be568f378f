"""The estimate of the reward stage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from data.errors import RecipeError
from data.storage import expand
from pipeline.contract.settings import rows_at_most
from pipeline.estimate.model.costs import Phase, StageCost
from pipeline.estimate.model.estimator import Estimator, rows_of
from pipeline.estimate.model.flops import Rows, training_flops
from pipeline.estimate.model.memory import adapter_parameters
from pipeline.estimate.model.sources import Lengths, Tree
from pipeline.estimate.stages.training import add_evaluation, context_of, looks, training_phases
from pipeline.stages.reward.settings import MAX_DEMONSTRATIONS

if TYPE_CHECKING:
    from pipeline.stages.dpo.settings import PreferenceSettings
    from pipeline.stages.reward.settings import RewardSettings


def estimate_reward(stage: str, settings: RewardSettings, estimator: Estimator) -> StageCost:
    """Return the cost of a reward stage: each prompt and completion goes through once, no logits.

    A decoder takes a prompt's completions as a tree; an encoder, whose rows are padded, costs more
    than is told here.
    """
    cost = estimator.cost(stage)
    shape, bf16 = estimator.shape(settings.model, stage), estimator.bf16(settings.bf16)
    read = ranking_rows(stage, settings, estimator)
    read.completions = max(2.0, read.completions)
    limit = settings.max_length or context_of(estimator, settings.model) or math.inf
    trees = read.trees(limit)
    largest = _largest(stage, trees, estimator, limit)
    share = 0.0 if settings.heldout else settings.heldout_share
    prompts = read.rows * (1 - share)
    per_epoch = max(1, math.ceil(prompts / settings.prompts_per_step))
    cost.steps = max(1, round(settings.epochs * per_epoch))
    epochs = cost.steps / per_epoch
    per_process = math.ceil(settings.prompts_per_step / cost.layout.processes)
    at_once = min(per_process, max(1, int(settings.tokens_per_micro_batch / largest.tokens)))
    sequences = max(1, round(at_once * read.completions))
    cost.parameters = {stage: shape.scorer}
    cost.phases = _phases(
        cost,
        settings,
        estimator,
        trees=at_once,
        largest=largest,
        accumulating=at_once < per_process,
    )
    rows = _rows_of(trees, prompts * epochs)
    flops = training_flops(
        shape,
        rows,
        positions=0,
        recompute=settings.gradient_checkpointing,
        trained_share=1.0 if settings.lora is None else 0.0,
    )
    mean = max(1.0, sum(tree.tokens for tree in trees) / len(trees))
    per_pass = max(1.0, settings.tokens_per_micro_batch / mean)
    passes = cost.steps * math.ceil(per_process / per_pass)
    cost.compute(
        "training",
        shape,
        flops=flops,
        tokens=rows.tokens,
        passes=passes,
        bf16=bf16,
        training=True,
    )
    judged = _rows_of(trees, read.rows * share)
    for apart in _rows_apart(stage, settings, estimator):
        judged += _rows_of(apart.trees(limit), apart.rows)
    judged = judged.times(1 + looks(cost.steps, settings.evaluate_every))
    judged += _demonstrations(stage, settings, estimator, limit)
    add_evaluation(cost, shape, judged, positions=0, at_once=sequences, bf16=bf16)
    return cost


def _phases(
    cost: StageCost,
    settings: RewardSettings,
    estimator: Estimator,
    *,
    trees: int,
    largest: Tree,
    accumulating: bool,
) -> list[Phase]:
    """Return the memory of a step; with `lora` the adapter and the head alone are trained."""
    shape = estimator.shape(settings.model, cost.stage)
    parameters, frozen = shape.scorer, 0
    if settings.lora is not None:
        parameters = adapter_parameters(shape, rank=settings.lora.rank) + shape.hidden
        shape, frozen = shape.frozen(), shape.trunk
    return training_phases(
        shape,
        cost.layout,
        parameters=parameters,
        rows=trees,
        length=round(largest.prefix + largest.widest),
        logits=0.0,
        accumulating=accumulating,
        bf16=estimator.bf16(settings.bf16),
        checkpointed=settings.gradient_checkpointing,
        masked=True,
        head=False,
        frozen=frozen,
        tree=largest,
    )


def _largest(stage: str, trees: list[Tree], estimator: Estimator, limit: float) -> Tree:
    """Return the largest tree, its longest sequence as long as `--assume` says."""
    largest = max(trees, key=lambda tree: tree.tokens)
    longest = max(tree.prefix + tree.widest for tree in trees)
    widest = max(1.0, estimator.longest(stage, longest, limit) - largest.prefix)
    return replace(largest, widest=widest, branch=min(largest.branch, widest))


def _rows_of(trees: list[Tree], count: float) -> Rows:
    """Return `count` trees as large as those that were measured; its count is of sequences."""
    factor = count / max(1, len(trees))
    return Rows(
        factor * sum(tree.branches for tree in trees),
        factor * sum(tree.tokens for tree in trees),
        factor * sum(tree.squares for tree in trees),
    )


def _rows_apart(stage: str, settings: RewardSettings, estimator: Estimator) -> list[Lengths]:
    """Return the rankings that are judged and not learnt, where the recipe names them."""
    reference = settings.tokenizer or settings.model
    apart = [estimator.lengths(stage, settings.heldout, reference, heldout=True)]
    if settings.eval_rankings is not None:
        apart.append(referred_rankings(stage, settings.eval_rankings, estimator, reference))
    return apart


def _demonstrations(
    stage: str, settings: RewardSettings, estimator: Estimator, limit: float
) -> Rows:
    """Return the demonstrations, which are scored once for the bias."""
    sources, reference = settings.demonstrations, settings.tokenizer or settings.model
    read = estimator.lengths(stage, sources, reference, heldout=True)
    read = read.behind(settings.passage_tokens)
    return rows_of(read.whole(limit), min(read.rows, rows_at_most(sources, MAX_DEMONSTRATIONS)))


def ranking_rows(
    stage: str, settings: RewardSettings | PreferenceSettings, estimator: Estimator
) -> Lengths:
    """Return the rankings that a stage learns."""
    reference = settings.tokenizer or settings.model
    read = estimator.lengths(stage, settings.train, reference) if settings.train else Lengths()
    named = settings.rankings or ()
    for target in (named,) if isinstance(named, str) else named:
        read = read + referred_rankings(stage, target, estimator, reference)
    if not read.rows:
        raise RecipeError(f"stage {stage}: its sources hold no rows; nothing to estimate")
    return read


def referred_rankings(stage: str, target: str, estimator: Estimator, reference: str) -> Lengths:
    """Return the rows of a rankings stage, or of the file or hub id that stands for one."""
    from pipeline.contract.settings import SourceSettings, external_location, is_external
    from pipeline.estimate.stages.sampling import ranked_prompts

    if not is_external(target):
        return ranked_prompts(target, estimator, reference, asked_by=stage)
    place = external_location(target)
    file = expand(place)
    file = file / "rankings.jsonl" if (file / "rankings.jsonl").is_file() else file
    key = "path" if file.exists() or place.startswith((".", "/", "~")) else "hub"
    source = SourceSettings(**{key: str(file) if key == "path" else place})
    return estimator.lengths(stage, (source,), reference)
