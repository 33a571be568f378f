"""Which of all stored labels a figure or an export takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from data.labels.records import AnnotatorKind, LabelRow, Purpose
from data.records import prompt_hash

TRAINING: tuple[Purpose, ...] = ("label",)
"""What labels are for that may train."""


def last_revisions(rows: Iterable[LabelRow]) -> list[LabelRow]:
    """Return the last revision of each label, in the order in which labels were first met."""
    last: dict[str, LabelRow] = {}
    for row in rows:
        key = row.assignment.id
        if key not in last or row.label.revision > last[key].label.revision:
            last[key] = row
    return list(last.values())


def labels_of(
    rows: Iterable[LabelRow],
    *,
    purposes: Collection[Purpose] | None = TRAINING,
    kinds: Collection[AnnotatorKind] | None = None,
    revisions: Literal["last", "all"] = "last",
) -> list[LabelRow]:
    """Return the labels that were given for these purposes by these kinds of annotators.

    Gold tasks, the qualification and repeats are no training data unless they are asked for: the
    answer of the first two is known, and a repeat would count its task twice.

    Args:
        rows: labels, of any revision.
        purposes: None takes all.
        kinds: None takes all.
        revisions: the last of each label, or all.
    """
    return [
        row
        for row in (last_revisions(rows) if revisions == "last" else rows)
        if (purposes is None or row.assignment.purpose in purposes)
        and (kinds is None or row.annotator.kind in kinds)
    ]


def cluster_of(row: LabelRow) -> str:
    """Return what the labels of one prompt share."""
    return prompt_hash(row.assignment.task.new.prompt)
