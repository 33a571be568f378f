"""Adjudication: an admin's word on a task, which takes the place of all its labels.

Labels stay as they are, and so does every adjudication: it is a label of its own, of an assignment
to the admin for the purpose "adjudication". At most one of a task stands. A further word of the
same admin is a further revision; that of another admin withdraws the first; taking it back
withdraws it, and the annotators' labels count again. Exports and stages go by
`campaign.label_filter`; figures of agreement leave adjudications out.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import sqlalchemy as sa

from data.errors import InvalidLabelError, LabelConflictError, NotYoursError
from data.labels.campaign.recording import stands
from data.labels.records import CampaignSettings, Label, Submission
from data.labels.store import rows, tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database, new_id

_campaign, _given, _label = tables.campaigns.c, tables.assignments.c, tables.labels.c
_task = tables.tasks.c


def order_of(task_id: str, completions: int) -> list[int]:
    """Return which answer stands at which place for admins: as shuffled as annotators see them."""
    order = list(range(completions))
    random.Random(f"review {task_id}").shuffle(order)
    return order


class Adjudication:
    """Decides tasks of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.audit = Audit(database)

    def decide(
        self, task_id: str, admin_id: str, submission: Submission, *, instead_of: str
    ) -> Label:
        """Store an admin's word on a task; when this returns, it is on the disk.

        Args:
            task_id: what is decided.
            admin_id: by whom.
            submission: the word; sending it again stores nothing.
            instead_of: id of the adjudication that the admin saw, "" for none.

        Raises:
            NotYoursError: there is no such task.
            InvalidLabelError: not what the campaign asks.
            LabelConflictError: the task has no label that could train, or another word came
                meanwhile.
        """
        with self.database.write() as connection:
            task = _locked(connection, task_id)
            last = _standing(connection, task_id)
            if last is not None and last.submission.key == submission.key:
                return last
            _require_seen(last, instead_of)
            if not _has_labels(connection, task_id):
                raise LabelConflictError("nothing that could train was said of this comparison yet")
            mode = CampaignSettings(**task.settings).mode
            problem = submission.problem(completions=len(task.completions), mode=mode)
            if problem:
                raise InvalidLabelError(problem)
            assignment_id, revision = self._take(connection, task, admin_id)
            if _was_sent(connection, assignment_id, submission.key):
                raise LabelConflictError(
                    "this decision was sent before and taken back since: to decide so again, "
                    "send it once more"
                )
            label = Label(new_id(), assignment_id, revision, submission, self.database.now())
            values = dataclasses.asdict(submission)
            values["submission_key"] = values.pop("key")
            connection.execute(
                tables.labels.insert().values(
                    id=label.id,
                    assignment_id=assignment_id,
                    revision=revision,
                    created_at=label.created_at,
                    **values,
                )
            )
            self.audit.write(connection, admin_id, "adjudicate", task_id, label=label.id)
            return label

    def undo(self, task_id: str, admin_id: str, *, label_id: str) -> None:
        """Take the word on a task back, so that what the annotators said counts again.

        Raises:
            NotYoursError: there is no such task.
            LabelConflictError: it is not that word any more.
        """
        with self.database.write() as connection:
            _locked(connection, task_id)
            last = _standing(connection, task_id)
            if last is None:
                return  # sent twice, or somebody else was faster with the same
            _require_seen(last, label_id)
            self._set(connection, last.assignment_id, "withdrawn")
            self.audit.write(connection, admin_id, "undo adjudication", task_id, label=last.id)

    def _take(self, connection: sa.Connection, task: Any, admin_id: str) -> tuple[str, int]:
        """Return the admin's assignment, the only one that stands now, and the next revision."""
        mine = connection.execute(
            sa.select(_given.id).where(
                _given.annotator_id == admin_id,
                _given.task_id == task.id,
                _given.purpose == "adjudication",
            )
        ).scalar_one_or_none()
        other = stands(connection, task.id)
        if other is not None and other != mine:
            self._set(connection, other, "withdrawn")
        if mine is None:
            return self._give(connection, task, admin_id), 1
        if other != mine:
            self._set(connection, mine, "adjudicated")
        newest = sa.select(sa.func.max(_label.revision)).where(_label.assignment_id == mine)
        return mine, (connection.scalar(newest) or 0) + 1

    def _give(self, connection: sa.Connection, task: Any, admin_id: str) -> str:
        assignment_id, now = new_id(), self.database.now()
        connection.execute(
            tables.assignments.insert().values(
                id=assignment_id,
                task_id=task.id,
                campaign_id=task.campaign_id,
                annotator_id=admin_id,
                purpose="adjudication",
                state="adjudicated",
                takes_slot=False,
                shown=order_of(task.id, len(task.completions)),
                strategy="random",
                probability=1.0,
                guidelines_version=task.guidelines_version,
                given_at=now,
                leased_until=now,
                ended_at=now,
            )
        )
        return assignment_id

    def _set(self, connection: sa.Connection, assignment_id: str, state: str) -> None:
        connection.execute(
            tables.assignments.update()
            .where(_given.id == assignment_id)
            .values(state=state, ended_at=self.database.now())
        )


def _locked(connection: sa.Connection, task_id: str) -> Any:
    """Return a task with its campaign's settings; whoever else decides it waits."""
    query = (
        sa.select(
            _task.id,
            _task.campaign_id,
            _task.completions,
            _campaign.settings,
            _campaign.guidelines_version,
        )
        .join(tables.campaigns, _campaign.id == _task.campaign_id)
        .where(_task.id == task_id)
        .with_for_update(of=tables.tasks)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotYoursError("there is no such comparison")
    return row


def _standing(connection: sa.Connection, task_id: str) -> Label | None:
    query = (
        sa.select(*rows.LABEL)
        .join(tables.assignments, _given.id == _label.assignment_id)
        .where(_given.task_id == task_id, _given.state == "adjudicated")
        .order_by(_label.revision.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else rows.label(row)


def _was_sent(connection: sa.Connection, assignment_id: str, key: str) -> bool:
    query = sa.select(_label.id).where(
        _label.assignment_id == assignment_id, _label.submission_key == key
    )
    return connection.execute(query).first() is not None


def _require_seen(last: Label | None, seen: str) -> None:
    if (last.id if last is not None else "") != seen:
        raise LabelConflictError(
            "another admin decided this comparison meanwhile: look at it again, then decide"
        )


def _has_labels(connection: sa.Connection, task_id: str) -> bool:
    query = sa.select(_given.id).where(
        _given.task_id == task_id, _given.purpose == "label", _given.state == "done"
    )
    return connection.execute(query.limit(1)).first() is not None
