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
    adjudicated: bool = True,
) -> list[LabelRow]:
    """Return the labels that were given for these purposes by these kinds of annotators.

    Gold tasks, the qualification and repeats are no training data unless they are asked for: the
    answer of the first two is known, and a repeat would count its task twice. Of a task that was
    adjudicated that word alone is taken, unless everything is asked for: all purposes or revisions.

    Args:
        rows: labels, of any revision.
        purposes: None takes all.
        kinds: None takes all.
        revisions: the last of each label, or all.
        adjudicated: whether adjudications are taken; without, annotators' own labels alone.
    """
    taken = [
        row
        for row in (last_revisions(rows) if revisions == "last" else rows)
        if (kinds is None or row.annotator.kind in kinds)
        and (adjudicated or row.assignment.purpose != "adjudication")
    ]
    if purposes is None:
        return taken
    asked = {*purposes} | ({"adjudication"} if "label" in purposes else set())
    taken = [row for row in taken if row.assignment.purpose in asked]
    if revisions == "all":
        return taken
    decided = {row.assignment.task.id for row in taken if row.assignment.purpose == "adjudication"}
    return [
        row
        for row in taken
        if row.assignment.purpose == "adjudication" or row.assignment.task.id not in decided
    ]


def cluster_of(row: LabelRow) -> str:
    """Return what the labels of one prompt share."""
    return prompt_hash(row.assignment.task.new.prompt)
