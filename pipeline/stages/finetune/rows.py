"""The rows of a finetune stage, and the labels that they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.errors import SourceError
from data.records import Extract, Labelled, Record, Tagged, prompt_of, to_text
from data.sources.split import is_heldout, opening
from data.words import counted
from pipeline.stages.finetune.settings import FinetuneSettings, HeadName

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext

Learned = Labelled | Extract | Tagged

WANTED: Mapping[HeadName, tuple[type[Learned], str]] = {
    "classify": (Labelled, "head classify learns texts with a label"),
    "span": (Extract, "head span learns questions with a context and an answer in it"),
    "tag": (Tagged, "head tag learns tokens with tags, or texts with spans"),
}
"""What a row is to each head, and how that is called."""


@dataclass(frozen=True)
class Rows:
    """Rows to learn and rows to judge by; no text is in both.

    Attributes:
        training: to learn.
        heldout: to judge by.
        labels: of both, in their order in the model; tags without B and I, none of a span.
    """

    training: list[Learned]
    heldout: list[Learned]
    labels: list[str]


def converter(head: HeadName) -> Callable[[Record], Learned]:
    """Return what takes the records of a head; a `TypeError` of others."""
    kind, _ = WANTED[head]

    def convert(record: Record) -> Learned:
        if not isinstance(record, kind):
            raise TypeError(f"a {type(record).__name__} is no {kind.__name__}")
        return record

    return convert


def read_rows(context: StageContext[FinetuneSettings]) -> Rows:
    """Read what a stage learns and is judged by.

    Raises:
        SourceError: nothing is left to learn or to judge by, there are fewer than two classes, or
            a held-out row has a label that none to learn has.
    """
    settings = context.settings
    training = _read(context, "train", settings.train)
    if settings.heldout:
        heldout = _read(context, "heldout", settings.heldout)
    else:
        share, seed = settings.heldout_share, context.seed
        heldout = [r for r in training if is_heldout(prompt_of(r), share=share, seed=seed)]
    judged = {opening(to_text(row)) for row in heldout}
    apart = {id(row) for row in heldout}
    learned = [r for r in training if id(r) not in apart and opening(to_text(r)) not in judged]
    lost = len(training) - len(learned) - (0 if settings.heldout else len(heldout))
    if lost:
        context.say(f"{counted(lost, 'row')} left out of training: the same text is held out")
    for rows, what in ((learned, "learn"), (heldout, "judge by")):
        if not rows:
            raise SourceError(
                f"stage {context.name}: of {counted(len(training), 'row')} to learn and "
                f"{len(heldout)} held out none is left to {what}; give more rows, or another "
                "heldout_share"
            )
    context.say(f"{counted(len(learned), 'row')} to learn, {len(heldout)} held out")
    return Rows(learned, heldout, _labels(context, learned, heldout))


def _read(context: StageContext[FinetuneSettings], field: str, sources: Any) -> list[Learned]:
    settings = context.settings
    wanted = WANTED[settings.head][1]
    return [
        *context.read(field, settings.read_as(sources), converter(settings.head), wanted=wanted)
    ]


def _labels(
    context: StageContext[FinetuneSettings], learned: Sequence[Learned], heldout: Sequence[Learned]
) -> list[str]:
    head = context.settings.head
    if head == "span":
        return []
    found = {label for row in learned for label in _labels_of(row)}
    labels = sorted(found, key=_by_number if all(map(_is_number, found)) else str)
    listed = ", ".join(labels[:5]) + (" ..." if len(labels) > 5 else "")
    if head == "classify" and len(labels) < 2:
        raise SourceError(
            f"stage {context.name}: all rows to learn have the label {listed}; a classifier needs "
            "rows of two classes or more"
        )
    if not labels:
        raise SourceError(f"stage {context.name}: no row to learn has an entity; give some that do")
    unknown = next((x for row in heldout for x in _labels_of(row) if x not in found), None)
    if unknown is not None:
        raise SourceError(
            f"stage {context.name}: a held-out row has the label {unknown!r:.60}, none to learn "
            f"has it ({listed}); correct it, or give rows of it to learn"
        )
    return labels


def _labels_of(row: Learned) -> list[str]:
    if isinstance(row, Labelled):
        return [row.label]
    return [label for _, _, label in row.spans] if isinstance(row, Tagged) else []


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _by_number(label: str) -> int:
    return int(label)
