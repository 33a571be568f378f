"""What the stages before an evaluation read, to compare with what it judges on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.contract.settings import (
    SourceSettings,
    StageSettings,
    external_location,
    is_external,
    references,
)
from pipeline.evaluation.judge.overlap import DOINGS, Reading
from pipeline.stages.reward.rows import rankings_source

if TYPE_CHECKING:
    from data.records import Record
    from data.sources.source import Source
    from pipeline.contract.handover import HandOver

_WORKED_ON = ("train", "prompts", "rankings", "pretraining_sources")
"""Fields of sources that a stage learns from, samples on, ranks or chooses by."""


def readings(hand: HandOver) -> dict[str, Reading]:
    """Return what each stage that a stage builds on read, nearest the start first."""
    before = _before(hand.name, hand)
    return {
        name: _reading(name, hand)
        for name in hand.stages
        if name in before and hand.stages[name].kind in DOINGS
    }


def made_elsewhere(hand: HandOver) -> list[str]:
    """Return the checkpoints that the stages before a stage, or it itself, take from outside."""
    stages = [hand.name, *_before(hand.name, hand)]
    external = [
        target
        for name in stages
        for target, mark in references(hand.stages[name]).values()
        if is_external(target) and mark.provides in ("policy", "reward")
    ]
    return list(dict.fromkeys(external))


def _before(name: str, hand: HandOver) -> dict[str, StageSettings]:
    """Return the settings of all stages that one builds on, through others too."""
    earlier: dict[str, StageSettings] = {}
    open_names = [name]
    while open_names:
        for target, _ in references(hand.stages[open_names.pop()]).values():
            if not is_external(target) and target not in earlier:
                earlier[target] = hand.stages[target]
                open_names.append(target)
    return earlier


def _reading(name: str, hand: HandOver) -> Reading:
    settings = hand.stages[name]

    def sources(field: str) -> list[Source]:
        value = getattr(settings, field, None)
        items = value if isinstance(value, tuple) else ()
        return [item.source() for item in items if isinstance(item, SourceSettings)]

    files = [
        target
        for target, mark in references(settings).values()
        if mark.provides == "rankings" and is_external(target)
    ]
    return Reading(
        kind=settings.kind,
        sources=[
            *(source for field in _WORKED_ON for source in sources(field)),
            *(rankings_source(external_location(target)).source() for target in files),
        ],
        judged_by=sources("heldout"),
        held_out=_held_out(name, hand),
    )


def _held_out(name: str, hand: HandOver) -> Callable[[Record], bool]:
    """Return what tells which rows a stage kept from training, as that stage itself does."""
    from data.records import prompt_of, to_text
    from data.sources.split import is_heldout, is_heldout_text

    settings, artifact = hand.stages[name], hand.finished(name)
    share = float(getattr(settings, "heldout_share", 0.0))
    if getattr(settings, "heldout", ()) or not share:
        return lambda record: False
    if settings.kind == "pretrain":
        return lambda record: is_heldout_text(to_text(record), share=share)
    if settings.kind == "sft" and artifact is not None:
        seed = int(artifact.manifest["seed"])
        return lambda record: is_heldout(prompt_of(record), share=share, seed=seed)
    return lambda record: False
