"""Stage `distill`: a student learns from a teacher what to say of a text.

The student begins with every second layer of the teacher, or is a checkpoint of its own. It
learns the teacher's probabilities at a temperature, the true tokens, and the direction of its last
hidden states (Sanh et al. 2019); `training/objectives/distillation.py` says where that departs.
All else is as in a `pretrain` stage of the same objective.

Leaves `model/`, of the teacher's class. `work/` holds the chunks until the stage is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data.errors import HandOverError, ModelError
from pipeline.contract.kind import StageKind
from pipeline.stages.checks import require_shared_batch, require_texts
from pipeline.stages.distill.settings import DistillSettings
from pipeline.stages.pretrain.stage import learn, require_learner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver


def check(settings: DistillSettings, hand: HandOver) -> None:
    """Refuse a teacher or student that does not fit objective, context or each other.

    Raises:
        HandOverError: one is of another kind, their tokenizers differ, or the context is longer
            than theirs.
    """
    require_texts(hand, "train", settings.train)
    require_texts(hand, "heldout", settings.heldout)
    require_shared_batch(hand, settings.batch_size)
    hand.require_usable_tokenizer(settings.teacher, way_out=hand.with_another_pad(settings.teacher))
    for setting, named in (("teacher", settings.teacher), ("model", settings.model)):
        if named is not None:
            require_learner(hand, setting, named, settings, settings.objective)
    if settings.model is not None:
        hand.require_same_tokenizer(settings.teacher, settings.model)


def run(context: StageContext[DistillSettings]) -> dict[str, float | int | str]:
    """Make a student, train and save it; return the final metrics."""
    from pipeline.models.load import load_tokenizer
    from pipeline.models.students import shallower
    from pipeline.training.language_model import Causal
    from pipeline.training.objectives.distillation import Distilled, Weights
    from pipeline.training.objectives.masked import Masked

    settings = context.settings
    teacher = _load(context, "teacher", settings.teacher)
    if settings.model is None:
        student = shallower(teacher, settings.layers, source=settings.teacher)
    else:
        student = _load(context, "model", settings.model)
        _require_alike(context, student, teacher)
    if settings.gradient_checkpointing:
        student.activation_checkpointing_enable({"use_reentrant": False})
    tokenizer = load_tokenizer(
        context.input("teacher"), trust_remote_code=settings.trust_remote_code
    )
    teacher.requires_grad_(False)
    context.say(f"{settings.teacher} teaches with {teacher.num_parameters():,} parameters")
    parts: dict[str, Any] = {
        "temperature": settings.temperature,
        "weights": Weights(settings.soft, settings.hard, settings.cosine),
    }
    if settings.objective == "causal":
        learns = Distilled(Causal(), student, Causal(), teacher, **parts)
        return learn(context, student, tokenizer, asks=None, learns=learns)
    asked: dict[str, Any] = settings.masking.model_dump()
    asks, tells = (Masked(m, tokenizer, context.seed, **asked) for m in (student, teacher))
    learns = Distilled(asks, student, tells, teacher, **parts)
    return learn(context, student, tokenizer, asks=asks, learns=learns)


def _load(context: StageContext[DistillSettings], setting: str, source: str) -> PreTrainedModel:
    """Return a checkpoint; refuse one that can't be asked.

    Raises:
        ModelError: it is not what the objective is learned by.
        HandOverError: the context is longer than it takes.
    """
    from pipeline.contract.heads import AUTO_CLASSES
    from pipeline.models.load import context_length, load_denoiser, load_policy
    from pipeline.models.trials import require_causal
    from pipeline.training.objectives.masked import require_encoder

    settings = context.settings
    trust = settings.trust_remote_code
    if settings.objective == "causal":
        model = load_policy(context.input(setting), trust_remote_code=trust)
        require_causal(model, source)
    else:
        auto_class = AUTO_CLASSES["masked"]
        model = load_denoiser(context.input(setting), auto_class, trust_remote_code=trust)
        require_encoder(model, source)
    room = context_length(model)
    if room is not None and settings.context_length > room:
        raise HandOverError(
            f"stage {context.name}: context_length is {settings.context_length} tokens, a "
            f"{type(model).__name__} of {source} takes {room}; lower it"
        )
    return model


def _require_alike(
    context: StageContext[DistillSettings], student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    """Refuse a student of another vocabulary, or width where states are compared."""
    settings = context.settings
    (rows, width), (wanted, widest) = (
        (model.get_output_embeddings().weight.shape[0], model.config.hidden_size)
        for model in (student, teacher)
    )
    if rows != wanted:
        raise ModelError(
            f"stage {context.name}: {settings.model} tells {rows} tokens apart, the teacher "
            f"{settings.teacher} {wanted}; use a student of the teacher's vocabulary"
        )
    if settings.cosine and width != widest:
        raise ModelError(
            f"stage {context.name}: cosine is {settings.cosine:g}, but {settings.model} is {width} "
            f"wide and {settings.teacher} {widest}; set it to 0"
        )


KIND = StageKind(
    name="distill",
    settings=DistillSettings,
    run=run,
    check=check,
    provides=frozenset({"policy", "tokenizer"}),
    main_metric="eval/perplexity",
    version=1,
)
