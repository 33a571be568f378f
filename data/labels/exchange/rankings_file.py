"""The lossless file of labels: rows that any reader of rankings takes, and back again.

A row has the keys of `data.records.Ranking`; what a ranking has no place for stands under `_label`
in its `meta`. Ranks, ratings, flags, policies and `completion_ids` are in the order of
`completions`; `order[i]` is the index of the completion that was shown at place i.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast, get_args

from data.labels.records import (
    Annotator,
    AnnotatorKind,
    Assignment,
    Label,
    LabelRow,
    Mode,
    NewTask,
    Purpose,
    Strategy,
    Submission,
    Task,
)
from data.records import ENDED, Prompt, Ranking, endings_in, prompt_hash
from data.sources.turns import as_messages
from data.sources.values import RowError, as_list, as_number, as_text

LABEL = "_label"
"""Key of a ranking's `meta` under which the label stands."""
VOTES = "_votes"
"""Key of a ranking's `meta` under which the votes of several annotators stand."""
VERSION = 1


def completion_id(prompt: Prompt, completion: str) -> str:
    """Return a name for an answer to a prompt: the same for the same words, 16 hex digits."""
    text = f"{prompt_hash(prompt)}\n{completion}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:16]


def plain_ranking(row: LabelRow) -> Ranking:
    """Return a label's ranks, without what else is known of it.

    What an earlier file left in the task's `meta` under our own keys is not carried on: prompts of
    a file of labels may be those of new tasks.
    """
    new = row.assignment.task.new
    return Ranking(
        prompt=new.prompt,
        completions=list(new.completions),
        ranks=list(row.label.submission.ranks),
        id=row.label.id,
        annotator=row.annotator.id,
        policies=list(new.policies),
        meta=own_meta(new.meta),
        ended=endings_in(new.meta, len(new.completions)),
    )


def to_ranking(row: LabelRow, *, blind: bool = False) -> Ranking:
    """Return a label as a ranking that holds all of it.

    Args:
        row: the label.
        blind: leave out what may tell who wrote an answer: policies, scores of reward models, the
            task's `meta`; its key and the campaign's name are hashed.
    """
    ranking, assignment, submission = plain_ranking(row), row.assignment, row.label.submission
    label = {
        "version": VERSION,
        "campaign": _hashed(row.campaign) if blind else row.campaign,
        "mode": row.mode,
        "task": _task_facts(row.assignment.task, blind=blind),
        # Roles and rights are no facts about a label, and no file may hand them out.
        "annotator": {"name": row.annotator.name, "kind": row.annotator.kind},
        "assignment": {
            "id": assignment.id,
            "purpose": assignment.purpose,
            "strategy": assignment.strategy,
            "probability": float(assignment.probability),
            "guidelines_version": assignment.guidelines_version,
        },
        "order": assignment.order,
        "ratings": list(submission.ratings),
        "flags": [sorted(flags) for flags in submission.flags],
        "strength": submission.strength,
        "comment": submission.comment,
        "seconds": float(submission.seconds),
        "submission": submission.key,
        "revision": row.label.revision,
        "created_at": row.label.created_at.isoformat(),
    }
    if blind:
        return dataclasses.replace(ranking, policies=[], meta={LABEL: label})
    return dataclasses.replace(ranking, meta={**ranking.meta, LABEL: label})


def own_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's `meta` without what exports put there."""
    return {key: value for key, value in meta.items() if key not in (LABEL, VOTES)}


def _task_facts(task: Task, *, blind: bool) -> dict[str, Any]:
    new = task.new
    return {
        "id": task.id,
        "campaign_id": task.campaign_id,
        "key": _hashed(new.key) if blind else new.key,
        "completion_ids": [completion_id(new.prompt, text) for text in new.completions],
        "scores": [] if blind else [[float(score) for score in row] for row in new.scores],
        "gold_ranks": new.gold_ranks,
        "gold_note": new.gold_note,
    }


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def is_label(row: Mapping[str, Any]) -> bool:
    """Tell whether a row holds what `to_ranking` keeps."""
    meta = row.get("meta")
    return isinstance(meta, Mapping) and LABEL in meta


def from_row(row: Mapping[str, Any]) -> LabelRow:
    """Return the label of a row that `to_ranking` gave.

    Raises:
        RowError: something is missing, of another type or of a later version.
    """
    try:
        label = row["meta"][LABEL]
        if label["version"] != VERSION:
            raise RowError(
                f"the label is of version {label['version']}, this program reads {VERSION}"
            )
        label_row = _label_row(row, label)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, RowError):
            raise
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise RowError(f"the label under '{LABEL}' is damaged: {what}") from error
    problem = label_row.label.submission.problem(
        completions=len(label_row.assignment.task.new.completions), mode=label_row.mode
    )
    if problem:
        raise RowError(problem)
    return label_row


def _label_row(row: Mapping[str, Any], label: Mapping[str, Any]) -> LabelRow:
    created_at = datetime.fromisoformat(label["created_at"])
    facts, given = label["task"], label["assignment"]
    task = Task(
        id=as_text(facts["id"], "task.id"),
        campaign_id=as_text(facts["campaign_id"], "task.campaign_id"),
        new=_new_task(row, facts),
    )
    annotator = Annotator(
        id=as_text(row["annotator"], "annotator"),
        name=as_text(label["annotator"]["name"], "annotator.name"),
        kind=cast(AnnotatorKind, _one_of(label["annotator"]["kind"], AnnotatorKind)),
    )
    return LabelRow(
        label=Label(
            id=as_text(row["id"], "id"),
            assignment_id=as_text(given["id"], "assignment.id"),
            revision=int(label["revision"]),
            submission=_submission(row, label),
            created_at=created_at,
        ),
        assignment=Assignment(
            task=task,
            annotator_id=annotator.id,
            order=[int(place) for place in label["order"]],
            # A lease is no fact about a label; it ended with it.
            leased_until=created_at,
            id=as_text(given["id"], "assignment.id"),
            purpose=cast(Purpose, _one_of(given["purpose"], Purpose)),
            strategy=cast(Strategy, _one_of(given["strategy"], Strategy)),
            probability=as_number(given["probability"], "probability"),
            guidelines_version=int(given["guidelines_version"]),
        ),
        annotator=annotator,
        campaign=as_text(label["campaign"], "campaign"),
        mode=cast(Mode, _one_of(label["mode"], Mode)),
    )


def _new_task(row: Mapping[str, Any], facts: Mapping[str, Any]) -> NewTask:
    prompt, gold = row["prompt"], facts["gold_ranks"]
    endings = {ENDED: list(row[ENDED])} if row.get(ENDED) else {}
    return NewTask(
        key=as_text(facts["key"], "task.key"),
        prompt=as_text(prompt, "prompt") if isinstance(prompt, str) else as_messages(prompt),
        completions=[
            as_text(text, "completions") for text in as_list(row["completions"], "completions")
        ],
        policies=[as_text(name, "policies") for name in row.get("policies", [])],
        scores=[
            [as_number(score, "scores") for score in as_list(scores, "scores")]
            for scores in as_list(facts["scores"], "scores")
        ],
        gold_ranks=None if gold is None else [int(rank) for rank in as_list(gold, "gold_ranks")],
        gold_note=as_text(facts["gold_note"], "gold_note"),
        meta={**own_meta(row["meta"]), **endings},
    )


def _submission(row: Mapping[str, Any], label: Mapping[str, Any]) -> Submission:
    strength = label["strength"]
    return Submission(
        key=as_text(label["submission"], "submission"),
        ranks=[int(rank) for rank in as_list(row["ranks"], "ranks")],
        ratings=[int(rating) for rating in as_list(label["ratings"], "ratings")],
        flags=[as_list(flags, "flags") for flags in as_list(label["flags"], "flags")],
        strength=None if strength is None else int(strength),
        comment=as_text(label["comment"], "comment"),
        seconds=as_number(label["seconds"], "seconds"),
    )


def _one_of(value: Any, kinds: Any) -> Any:
    if value not in get_args(kinds):
        raise RowError(f"{value!r} is none of {', '.join(get_args(kinds))}")
    return value
