"""Estimates of the stages that train one model: pretrain, sft, reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.text.objectives.span_corruption import raw_length, span_counts
from pipeline.contract.settings import rows_at_most
from pipeline.estimate.model.costs import Layout, Phase, StageCost
from pipeline.estimate.model.estimator import Estimator, rows_of
from pipeline.estimate.model.flops import Rows, forward_flops, training_flops
from pipeline.estimate.model.memory import (
    ADAM,
    FP32,
    LOGITS_IN_LOSS,
    activation_bytes,
    block_bytes,
    cast_bytes,
    gathered_bytes,
    logit_bytes,
    tree_activation_bytes,
    tree_bytes,
    working_bytes,
)
from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.model.sources import Lengths, Tree
from pipeline.stages.distill.settings import DistillSettings
from pipeline.stages.sft.settings import MAX_HELDOUT, row_multiple
from pipeline.training.settings import HELDOUT_CHUNKS

if TYPE_CHECKING:
    from pipeline.stages.pretrain.settings import PretrainSettings
    from pipeline.stages.sft.settings import SftSettings

_MOMENTS = {"adamw": float(ADAM), "adafactor": 0.0}
"""Bytes a parameter of an optimiser's state; Adafactor's are a number a row and one a column."""
LOGITS_AT_ONCE = 64 * 2**20
"""Logits that a head which works in pieces holds at once."""


def training_phases(
    shape: ModelShape,
    layout: Layout,
    *,
    parameters: float,
    rows: int,
    length: int,
    logits: float,
    accumulating: bool,
    bf16: bool,
    checkpointed: bool,
    masked: bool,
    head: bool = True,
    frozen: float = 0,
    tree: Tree | None = None,
    moments: float = ADAM,
) -> list[Phase]:
    """Return the memory where the backward pass begins, where it ends, and in the optimiser's step.

    Gradients come as activations go, so that a step of one micro-batch never holds all of both.

    Args:
        shape: the model.
        layout: how it is spread.
        parameters: of the model that is trained, its head included.
        rows: of a micro-batch.
        length: tokens of the longest.
        logits: bytes of logits and what belongs to them in the loss.
        accumulating: whether there are several micro-batches.
        bf16: products in bf16 under autocast.
        checkpointed: gradient checkpointing.
        masked: an explicit attention mask.
        head: whether the output head is used.
        frozen: further parameters, not trained.
        tree: `rows` are trees as large as this one, packed without padding.
        moments: bytes a parameter that the optimiser keeps.
    """
    sizes: dict[str, Any] = {"rows": rows, "length": length, "bf16": bf16, "masked": masked}
    activations, block = _of_blocks(shape, checkpointed=checkpointed, tree=tree, **sizes)
    states: dict[str, Any] = {"parameters": parameters, "frozen": frozen, "moments": moments}
    resident = _states(shape, layout, **states, bf16=bf16)
    casts = cast_bytes(shape, bf16=bf16, head=head) if layout.sharding != "fsdp2" else 0.0
    gradients = layout.gradients(parameters)
    # The head's gradient is the first; buckets of DDP are there from the start.
    buckets = gradients - FP32 * layout.share(parameters)
    begins = {
        **resident,
        "gradients": gradients if accumulating else buckets + first_gradient(shape, layout, head),
        "activations": activations,
        "bf16 copies": casts,
        "logits": logits,
    }
    each = length if tree is None else tree.tokens
    working = working_bytes(shape, tokens=rows * each, bf16=bf16)
    return [
        Phase("backward begins", begins),
        one_block(begins, activations + (block if checkpointed else 0.0)),
        Phase("backward ends", {**resident, "gradients": gradients, "activations": working}),
        Phase("optimiser step", {**resident, "gradients": gradients}),
    ]


def _of_blocks(
    shape: ModelShape, *, checkpointed: bool, tree: Tree | None, **sizes: Any
) -> tuple[float, float]:
    """Return what all blocks keep for the backward pass, and what one of them does."""
    if tree is None:
        saved = activation_bytes(shape, **sizes, checkpointed=checkpointed)
        return saved, block_bytes(shape, **sizes)
    packed: dict[str, Any] = {"trees": sizes["rows"], "bf16": sizes["bf16"]}
    saved = tree_activation_bytes(shape, tree, **packed, checkpointed=checkpointed)
    return saved, tree_bytes(shape, tree, **packed)


def one_block(begins: dict[str, float], activations: float) -> Phase:
    """Return the moment when the logits are gone and a block's backward pass begins."""
    return Phase("backward of a block", {**begins, "logits": 0.0, "activations": activations})


def first_gradient(shape: ModelShape, layout: Layout, head: bool) -> float:
    """Return the bytes of the first gradient that there is, the output head's."""
    return FP32 * layout.share(shape.head) if head else 0.0


def _states(
    shape: ModelShape,
    layout: Layout,
    *,
    parameters: float,
    frozen: float,
    moments: float,
    bf16: bool,
) -> dict[str, float]:
    """Return what is there all the time: weights, Adam's moments, what sharding gathers."""
    resident = {
        "weights": FP32 * (frozen + layout.share(parameters)),
        "Adam": moments * layout.share(parameters),
    }
    if layout.sharding == "fsdp2":
        resident["gathered weights"] = gathered_bytes(shape, bf16=bf16)
    return resident


def shared_rows(cost: StageCost, batch: int, *, what: str = "batch_size") -> int:
    """Return the rows of a step on one accelerator; note where they can't be shared evenly."""
    if batch % cost.layout.processes:
        cost.problems.append(
            f"{what} {batch} can't be shared by {cost.layout.processes} processes: make it a "
            f"multiple, or run on a divisor of {batch}"
        )
    return max(1, math.ceil(batch / cost.layout.processes))


def estimate_pretrain(stage: str, settings: PretrainSettings, estimator: Estimator) -> StageCost:
    """Return the cost of a pretraining stage: rows of one length, logits of what is predicted."""
    return _of_text(stage, settings, estimator, settings.tokenizer or settings.model or stage)


def estimate_distill(stage: str, settings: DistillSettings, estimator: Estimator) -> StageCost:
    """Return the cost of distillation: as that of pretraining, and the teacher's forward pass."""
    teacher = estimator.shape(settings.teacher, stage)
    return _of_text(stage, settings, estimator, settings.teacher, teacher)


def _of_text(
    stage: str,
    settings: PretrainSettings | DistillSettings,
    estimator: Estimator,
    tokenizer: str,
    teacher: ModelShape | None = None,
) -> StageCost:
    cost = estimator.cost(stage)
    shape = estimator.shape(stage, stage)
    tokens, bf16 = pretraining_tokens(settings), estimator.bf16(settings.bf16)
    length = tokens.through(shape)
    mine = shared_rows(cost, settings.batch_size)
    micro = min(settings.micro_batch_size or settings.batch_size, mine)
    chunks = 0
    if settings.steps is None and settings.tokens is None:
        read = estimator.lengths(stage, settings.train, tokenizer)
        chunks = max(1, int(read.rows * sum(read.whole()) / len(read.prompts) / tokens.text))
    cost.steps = settings.total_steps(chunks)
    cost.parameters = {stage: shape.parameters}
    cost.phases = training_phases(
        shape,
        cost.layout,
        parameters=shape.parameters,
        rows=micro,
        length=length,
        logits=logit_bytes(
            shape,
            positions=micro * tokens.predicted * (1 if teacher is None else 2),
            copies=LOGITS_IN_LOSS,
        ),
        accumulating=micro < mine,
        bf16=bf16,
        checkpointed=settings.gradient_checkpointing,
        masked=not settings.attend_across_documents,
        frozen=0 if teacher is None else teacher.parameters,
        moments=_MOMENTS[settings.optimizer],
    )
    rows = Rows.alike(cost.steps * settings.batch_size, tokens.read + tokens.written)
    flops = rows.count * _row_flops(shape, tokens, recompute=settings.gradient_checkpointing)
    passes = cost.steps * math.ceil(mine / micro)
    cost.compute(
        "training",
        shape,
        flops=flops,
        tokens=rows.tokens,
        passes=passes,
        bf16=bf16,
        training=True,
    )
    if teacher is not None:
        _add_teacher(cost, teacher, rows, tokens, passes=passes, bf16=bf16)
    if settings.heldout or settings.heldout_share:
        chunks = (1 + looks(cost.steps, settings.evaluate_every)) * HELDOUT_CHUNKS
        judged = Rows.alike(chunks, length)
        positions = chunks * tokens.predicted
        estimator.assumed.tell(stage, f"{HELDOUT_CHUNKS} chunks or more are held out")
        add_evaluation(cost, shape, judged, positions=positions, at_once=micro, bf16=bf16)
    return cost


def _add_teacher(
    cost: StageCost,
    teacher: ModelShape,
    rows: Rows,
    tokens: RowTokens,
    *,
    passes: float,
    bf16: bool,
) -> None:
    """Add what a teacher says of the rows that its student learns."""
    cost.parameters["teacher"] = teacher.parameters
    flops = forward_flops(teacher, rows, positions=rows.count * tokens.predicted)
    cost.compute("teacher", teacher, flops=flops, tokens=rows.tokens, passes=passes, bf16=bf16)


@dataclass(frozen=True)
class RowTokens:
    """Tokens of one row of a pretraining objective.

    Attributes:
        text: of the corpus that it is made of.
        read: that go in; into the encoder, where there is one beside a decoder.
        written: that go into a decoder beside it.
        predicted: that get logits.
    """

    text: int
    read: int
    written: int
    predicted: int

    def through(self, shape: ModelShape) -> int:
        """Return the tokens that pass a block, on average over all of them."""
        if not self.written:
            return self.read
        halves = zip(shape.halves(), (self.read, self.written), strict=True)
        return math.ceil(sum(half.layers * tokens for half, tokens in halves) / shape.layers)


def pretraining_tokens(settings: PretrainSettings | DistillSettings) -> RowTokens:
    """Return the tokens of a row; two frame it, or one ends it where spans are hidden."""
    length = settings.context_length
    if settings.objective == "causal":
        return RowTokens(length, length, 0, length)
    if settings.objective == "masked":
        return RowTokens(length - 2, length, 0, math.ceil(length * settings.masking.share))
    assert not isinstance(settings, DistillSettings), "it asks for the next or masked tokens"
    if settings.objective == "span_corruption":
        spans = settings.spans.model_dump()
        text = raw_length(length - 1, **spans)
        target = sum(span_counts(text, **spans)) + 1
        return RowTokens(text, length, target, target)
    noise = settings.noise
    masks = noise.infill / noise.mean_span - noise.infill
    left = math.ceil((length - 2) * (1 + masks) * (1 - noise.delete))
    return RowTokens(length - 2, left + 2, length, length)


def _row_flops(shape: ModelShape, tokens: RowTokens, *, recompute: bool) -> float:
    """Return the FLOPs of training on a row; a decoder also attends to what the encoder read."""
    predicted: dict[str, Any] = {"positions": tokens.predicted, "recompute": recompute}
    if not tokens.written:
        return training_flops(shape, Rows.alike(1, tokens.read), **predicted)
    encoder, decoder = shape.halves()
    read = training_flops(encoder, Rows.alike(1, tokens.read), positions=0, recompute=recompute)
    across = Rows(1, tokens.written, tokens.written * (tokens.written + tokens.read))
    return read + training_flops(decoder, across, **predicted)


def estimate_sft(stage: str, settings: SftSettings, estimator: Estimator) -> StageCost:
    """Return the cost of a fine-tuning stage.

    On a processor logits are made at all positions, in one piece; on an accelerator TRL's fused
    head makes those of the answers in pieces, twice.
    """
    cost = estimator.cost(stage)
    shape, bf16 = estimator.shape(settings.model, stage), estimator.bf16(settings.bf16)
    read = estimator.lengths(stage, settings.train, settings.tokenizer or settings.model)
    examples = settings.shots * sum(read.whole()) / max(1, len(read.prompts))
    read = read.behind(examples + settings.passage_tokens)
    limit = settings.max_length or context_of(estimator, settings.model) or math.inf
    multiple = row_multiple(settings, limit, bf16=bf16, on_cpu=estimator.on_cpu)
    lengths = _filled(read.whole(limit), multiple)
    texts = _text_lengths(stage, settings, estimator, limit)
    longest = estimator.longest(stage, max([*lengths, *texts]), limit)
    rows, share = _learned_rows(settings, read, lengths, texts)
    if settings.packing:
        longest = int(limit) if math.isfinite(limit) else longest
        rows = Rows(math.ceil(rows.tokens / longest), rows.tokens, rows.squares)
    mine = shared_rows(cost, settings.batch_size)
    micro = min(settings.micro_batch_size or mine, mine)
    if mine % micro:
        cost.problems.append(
            f"the {mine} rows of a process are no multiple of micro_batch_size {micro}"
        )
    per_epoch = max(1, math.ceil(rows.count / settings.batch_size))
    cost.steps = settings.max_steps or max(1, math.ceil(settings.epochs * per_epoch))
    epochs = cost.steps / per_epoch
    cost.parameters = {stage: shape.parameters}
    positions = rows.tokens * (1.0 if estimator.on_cpu else share)
    cost.phases = training_phases(
        shape,
        cost.layout,
        parameters=shape.parameters,
        rows=micro,
        length=longest,
        logits=_answer_logits(shape, estimator, tokens=micro * longest, share=share),
        accumulating=micro < mine,
        bf16=bf16,
        checkpointed=settings.gradient_checkpointing,
        masked=not settings.packing and (micro > 1 or multiple is not None),
    )
    flops = training_flops(
        shape,
        rows.times(epochs),
        positions=positions * epochs,
        recompute=settings.gradient_checkpointing,
        recompute_logits=not estimator.on_cpu,
    )
    passes = cost.steps * math.ceil(mine / micro)
    tokens = rows.tokens * epochs
    cost.compute(
        "training", shape, flops=flops, tokens=tokens, passes=passes, bf16=bf16, training=True
    )
    _add_heldout(cost, settings, estimator, read, limit, at_once=micro)
    return cost


def _learned_rows(
    settings: SftSettings, read: Lengths, lengths: list[float], texts: list[float]
) -> tuple[Rows, float]:
    """Return an epoch's demonstrations and texts, and the share of their tokens that is learned."""
    count = read.rows * (1 - (0 if settings.heldout else settings.heldout_share))
    answers = rows_of(lengths, count)
    mixed = settings.pretraining.share if settings.pretraining else 0.0
    text = rows_of(texts, count * mixed / (1 - mixed))
    share = min(1.0, sum(read.answers) / max(1.0, sum(lengths)))
    rows = answers + text
    return rows, (share * answers.tokens + text.tokens) / max(1.0, rows.tokens)


def _text_lengths(
    stage: str, settings: SftSettings, estimator: Estimator, limit: float
) -> list[float]:
    """Return the tokens of the rows that the measured texts among demonstrations are cut into."""
    given = settings.pretraining
    if given is None:
        return []
    most = min(given.row_tokens, limit)
    found: list[float] = []
    for length in estimator.lengths(
        stage, given.train, settings.tokenizer or settings.model
    ).whole():
        found += [most] * int(length // most) + [length % most] * (length % most > 1)
    return found


def _filled(lengths: list[float], multiple: int | None) -> list[float]:
    return [multiple * math.ceil(length / multiple) for length in lengths] if multiple else lengths


def _add_heldout(
    cost: StageCost,
    settings: SftSettings,
    estimator: Estimator,
    read: Lengths,
    limit: float,
    *,
    at_once: int,
) -> None:
    """Add the looks at held-out demonstrations: at each candidate, and every so many steps."""
    shape, bf16 = estimator.shape(settings.model, cost.stage), estimator.bf16(settings.bf16)
    count = min(read.rows * settings.heldout_share, MAX_HELDOUT)
    if settings.heldout:
        reference = settings.tokenizer or settings.model
        read = estimator.lengths(cost.stage, settings.heldout, reference, heldout=True)
        count = min(read.rows, rows_at_most(settings.heldout, MAX_HELDOUT))
    multiple = row_multiple(settings, limit, bf16=bf16, on_cpu=estimator.on_cpu)
    times = settings.candidates + looks(cost.steps or 0, settings.evaluate_every)
    judged = rows_of(_filled(read.whole(limit), multiple), times * count)
    add_evaluation(cost, shape, judged, positions=judged.tokens, at_once=at_once, bf16=bf16)


def _answer_logits(
    shape: ModelShape, estimator: Estimator, *, tokens: float, share: float
) -> float:
    """Return the bytes of the logits of fine-tuning.

    On a processor: those of all positions, twice, as gradients of the picked and of the cut ones,
    beside those of the answers; elsewhere a piece of them.
    """
    if estimator.on_cpu:
        picked = logit_bytes(shape, positions=tokens * share, copies=LOGITS_IN_LOSS)
        spread = logit_bytes(shape, positions=tokens, copies=2)
        return max(picked, spread + logit_bytes(shape, positions=tokens * share, copies=1))
    positions = min(tokens * share, LOGITS_AT_ONCE / shape.vocabulary)
    return logit_bytes(shape, positions=positions, copies=LOGITS_IN_LOSS)


def context_of(estimator: Estimator, reference: str) -> int | None:
    """Return the context of a model that the recipe makes, None where it is another's."""
    from pipeline.contract.settings import is_external

    while not is_external(reference):
        settings = estimator.recipe.stages[reference]
        length = getattr(settings, "longest_input", None)
        if length is not None and getattr(settings, "model", None) is None:
            return int(length)
        following = getattr(settings, "model", None) or getattr(settings, "policy", None)
        if not isinstance(following, str):
            return None
        reference = following
    return None


def looks(steps: int, every: int) -> int:
    """Return how often something is looked at while so many steps are made; 0 is never."""
    return steps // every if every else 0


def add_evaluation(
    cost: StageCost, shape: ModelShape, rows: Rows, *, positions: float, at_once: int, bf16: bool
) -> None:
    """Add the looks at held-out rows."""
    if not rows.count:
        return
    cost.compute(
        "held-out rows",
        shape,
        flops=forward_flops(shape, rows, positions=positions),
        tokens=rows.tokens,
        passes=rows.count / (at_once * cost.layout.processes),
        bf16=bf16,
    )
