"""Labels that were given elsewhere, brought into the store with their orders, times and ids."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from data.errors import InvalidLabelError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.records import AnnotatorKind, LabelRow
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database

_BATCH = 200
_given, _task, _label = tables.assignments.c, tables.tasks.c, tables.labels.c


class Recording:
    """Brings labels in by the hundred, each once however often it is brought."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.campaigns = Campaigns(database)
        self.accounts = Accounts(database)
        self.audit = Audit(database)

    def record(self, campaign_id: str, rows: Iterable[LabelRow], *, by: str = "import") -> int:
        """Store labels with their tasks and annotators, and return how many were new.

        Tasks are found again by their key, annotators by kind and name, labels by task, annotator,
        purpose and revision; what is there stays as it is. A label counts towards its task even
        where the task has enough.

        Raises:
            InvalidLabelError: a label is not what its mode asks; those before it are stored.
            LabelError: there is no such campaign.
        """
        annotators: dict[tuple[AnnotatorKind, str], str] = {}
        total = 0
        iterator = iter(rows)
        while batch := list(itertools.islice(iterator, _BATCH)):
            for row in batch:
                _check(row)
            given = {row.assignment.task.new.key: row.assignment.task for row in batch}
            self.campaigns.add_tasks(
                campaign_id,
                [task.new for task in given.values()],
                wanted_ids={key: task.id for key, task in given.items()},
            )
            for row in batch:
                who = (row.annotator.kind, row.annotator.name)
                if who not in annotators:
                    kind, name = who
                    annotator = self.accounts.add(name, kind, wanted_id=row.annotator.id)
                    annotators[who] = annotator.id
            with self.database.write() as connection:
                # One import at a time: two of the same file would meet at the same rows.
                connection.execute(
                    sa.select(tables.campaigns.c.id)
                    .where(tables.campaigns.c.id == campaign_id)
                    .with_for_update()
                )
                ids = self._task_ids(connection, campaign_id, list(given))
                added = sum(
                    self._one(
                        connection,
                        campaign_id,
                        ids[row.assignment.task.new.key],
                        annotators[row.annotator.kind, row.annotator.name],
                        row,
                    )
                    for row in batch
                )
                if added:
                    self.audit.write(connection, by, "import", campaign_id, labels=added)
            total += added
        return total

    def _task_ids(
        self, connection: sa.Connection, campaign_id: str, keys: list[str]
    ) -> dict[str, str]:
        stored = connection.execute(
            sa.select(_task.key, _task.id).where(
                _task.campaign_id == campaign_id, _task.key.in_(keys)
            )
        ).all()
        return {row.key: row.id for row in stored}

    def _one(
        self,
        connection: sa.Connection,
        campaign_id: str,
        task_id: str,
        annotator_id: str,
        row: LabelRow,
    ) -> bool:
        known = connection.execute(
            sa.select(_given.id, _given.state).where(
                _given.annotator_id == annotator_id,
                _given.task_id == task_id,
                _given.purpose == row.assignment.purpose,
            )
        ).one_or_none()
        if (
            known is None
            and row.assignment.purpose == "adjudication"
            and stands(connection, task_id)
        ):
            return False  # what an admin said here stays
        if known is None:
            assignment_id = self._assignment(connection, campaign_id, task_id, annotator_id, row)
        elif known.state not in ("done", "adjudicated"):
            # It is in front of that very person: what they say there counts.
            return False
        else:
            assignment_id = known.id
        there = connection.execute(
            sa.select(_label.id).where(
                _label.assignment_id == assignment_id,
                sa.or_(
                    _label.revision == row.label.revision,
                    _label.submission_key == row.label.submission.key,
                ),
            )
        ).first()
        if there is not None:
            return False
        values = dataclasses.asdict(row.label.submission)
        values["submission_key"] = values.pop("key")
        connection.execute(
            tables.labels.insert().values(
                id=_free_id(connection, tables.labels, row.label.id, assignment_id),
                assignment_id=assignment_id,
                revision=row.label.revision,
                created_at=row.label.created_at,
                **values,
            )
        )
        return True

    def _assignment(
        self,
        connection: sa.Connection,
        campaign_id: str,
        task_id: str,
        annotator_id: str,
        row: LabelRow,
    ) -> str:
        given = row.assignment
        assignment_id = _free_id(connection, tables.assignments, given.id, annotator_id + task_id)
        connection.execute(
            tables.assignments.insert().values(
                id=assignment_id,
                task_id=task_id,
                campaign_id=campaign_id,
                annotator_id=annotator_id,
                purpose=given.purpose,
                state="adjudicated" if given.purpose == "adjudication" else "done",
                takes_slot=given.purpose == "label",
                shown=given.order,
                strategy=given.strategy,
                probability=given.probability,
                guidelines_version=given.guidelines_version,
                given_at=row.label.created_at,
                leased_until=given.leased_until,
                ended_at=row.label.created_at,
            )
        )
        if given.purpose == "label":
            left = sa.case((_task.slots_left > 0, _task.slots_left - 1), else_=0)
            connection.execute(
                tables.tasks.update()
                .where(_task.id == task_id)
                .values(slots_left=left, done=_task.done + 1)
            )
        return assignment_id


def stands(connection: sa.Connection, task_id: str) -> str | None:
    """Return the assignment of a task's adjudication, None where none stands."""
    return connection.scalar(
        sa.select(_given.id).where(_given.task_id == task_id, _given.state == "adjudicated")
    )


def _check(row: LabelRow) -> None:
    completions = len(row.assignment.task.new.completions)
    problem = row.label.submission.problem(completions=completions, mode=row.mode)
    # An order may be unknown, which is an empty one.
    order = row.assignment.order
    if problem is None and order and sorted(order) != list(range(completions)):
        problem = f"order {order} is none of {completions} completions"
    if problem:
        raise InvalidLabelError(f"label {row.label.id!r}: {problem}")


def _free_id(connection: sa.Connection, table: sa.Table, wanted: str, place: Any) -> str:
    """Return the id of the file, or one made of it where it is too long or taken."""
    taken = connection.execute(sa.select(table.c.id).where(table.c.id == wanted)).first()
    if wanted and len(wanted) <= 32 and taken is None:
        return wanted
    return hashlib.sha256(f"{place} {wanted}".encode()).hexdigest()[:32]
