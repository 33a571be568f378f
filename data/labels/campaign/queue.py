"""Which task an annotator gets next, and for how long.

A task may be taken by as many annotators as it has slots left. Taking one counts the slots down in
the same transaction that stores the assignment; a lease that ran out, a skip and a task given back
count them up again. An annotator who comes back late gets the same assignment again, with its order
and draft, unless somebody else took the slot meanwhile.

Locks are taken in one order (assignment, task), so that PostgreSQL sees no deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from data.errors import LabelConflictError, NotYoursError
from data.labels.campaign.next_task import Plan, Turn, take_slot
from data.labels.campaign.qualification import qualification
from data.labels.records import (
    Assignment,
    CampaignSettings,
    Qualification,
)
from data.labels.store import rows, tables
from data.labels.store.database import Database, new_id

_ATTEMPTS = 5
_given, _task = tables.assignments.c, tables.tasks.c


# Built once, as in `next_task`.
_ID: sa.BindParameter[str] = sa.bindparam("assignment")
_CAMPAIGN: sa.BindParameter[str] = sa.bindparam("campaign")
_ANNOTATOR: sa.BindParameter[str] = sa.bindparam("annotator")
_WHO = sa.select(tables.annotators).where(
    tables.annotators.c.id == _ANNOTATOR, tables.annotators.c.active.is_(True)
)
_WHAT = sa.select(tables.campaigns).where(tables.campaigns.c.id == _CAMPAIGN)
_TASK = sa.select(*rows.TASK).where(_task.id == sa.bindparam("task"))
# An adjudication is nobody's task: it is made, and made anew, on the pages of admins.
_OWN = sa.and_(
    _given.id == _ID, _given.annotator_id == _ANNOTATOR, _given.purpose != "adjudication"
)
_MINE = (
    sa.select(tables.assignments, tables.campaigns.c.settings)
    .join(tables.campaigns, tables.campaigns.c.id == _given.campaign_id)
    .where(_OWN)
    .with_for_update(of=tables.assignments)
)
_GIVEN = sa.select(*rows.ASSIGNMENT).select_from(rows.joined()).where(_OWN)
_ANYBODYS = sa.select(*rows.ASSIGNMENT).select_from(rows.joined()).where(_given.id == _ID)
_STATE = sa.select(_given.state).where(_given.id == _ID, _given.annotator_id == _ANNOTATOR)
_IS_LATE = sa.and_(
    _given.campaign_id == _CAMPAIGN,
    _given.state == "open",
    _given.leased_until < sa.bindparam("now", type_=tables.UtcTime),
    _given.takes_slot.is_(True),
)
_LATE = sa.select(tables.assignments).where(_IS_LATE).with_for_update(skip_locked=True)
_ANY_LATE = sa.select(_given.id).where(_IS_LATE).limit(1)
_SEEN = (
    sa.select(tables.assignments)
    .where(
        _given.annotator_id == _ANNOTATOR,
        _given.campaign_id == _CAMPAIGN,
        _given.state.in_(("open", "returned")),
    )
    .order_by(_given.state, _given.given_at.desc())
)
_BEFORE = {False: _SEEN, True: _SEEN.with_for_update()}
_INSERT = tables.assignments.insert()


class Queue:
    """Gives tasks to annotators."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def next(self, annotator_id: str, campaign_id: str) -> Assignment | None:
        """Return the annotator's open assignment, or a new one, or None when there is nothing.

        Persons do the qualification first, if the campaign has one. Then, while there are tasks
        to label, a task whose answer is known comes with the chance `gold_share`, one that the
        annotator labelled before with `repeat_share`, and else one by the campaign's strategy.

        Raises:
            NotYoursError: no such campaign, or no such annotator who is active.
        """
        self.return_expired(campaign_id)
        for _ in range(_ATTEMPTS):
            # What is read here is checked again when the task is taken.
            with self.database.look() as connection:
                annotator, campaign = _who_and_what(connection, annotator_id, campaign_id)
                before = self._before(connection, annotator_id, campaign_id, lock=False)
                for row in before:
                    if row.state == "open" and row.leased_until >= self.database.now():
                        return _assignment(connection, row.id)
                turn = None
                if not campaign.closed:
                    turn = Turn(connection, campaign, annotator)
                plan = turn.plan() if turn else None
            if not before and plan is None:
                return None
            try:
                with self.database.write(durable=False) as connection:
                    return self._settle(connection, campaign, annotator_id, turn, plan)
            except sa.exc.IntegrityError:
                # The same annotator got something in another tab meanwhile.
                continue
        raise LabelConflictError("tasks were asked for in several tabs at once: try again")

    def assignment(self, assignment_id: str, annotator_id: str) -> Assignment | None:
        """Return the assignment if it is this annotator's."""
        given = self.given(assignment_id, annotator_id)
        return None if given is None else given[0]

    def given(self, assignment_id: str, annotator_id: str) -> tuple[Assignment, str] | None:
        """Return the assignment with its state, as `state` tells it, if it is this annotator's."""
        where = {"assignment": assignment_id, "annotator": annotator_id}
        with self.database.look() as connection:
            row = connection.execute(_GIVEN, where).one_or_none()
        return None if row is None else (rows.assignment(row), row.a_state)

    def state(self, assignment_id: str, annotator_id: str) -> str | None:
        """Return `open`, `done`, `skipped` or `returned`, or None if it is not the annotator's."""
        where = {"assignment": assignment_id, "annotator": annotator_id}
        with self.database.look() as connection:
            return connection.execute(_STATE, where).scalar_one_or_none()

    def extend(self, assignment_id: str, annotator_id: str) -> Assignment:
        """Begin the lease of an open assignment anew.

        Raises:
            NotYoursError: it is not this annotator's.
            LabelConflictError: it is not open any more.
        """
        with self.database.write() as connection:
            row = lock(connection, assignment_id, annotator_id)
            if row.state != "open":
                raise LabelConflictError("this task is not open any more: go on to the next one")
            seconds = CampaignSettings(**row.settings).lease_seconds
            until = self.database.now() + timedelta(seconds=seconds)
            connection.execute(
                tables.assignments.update()
                .where(_given.id == assignment_id)
                .values(leased_until=until)
            )
            return _assignment(connection, assignment_id)

    def release(self, assignment_id: str, annotator_id: str) -> None:
        """Give an open assignment back to the pool; does nothing if it is not open."""
        with self.database.write() as connection:
            row = lock(connection, assignment_id, annotator_id)
            if row.state == "open":
                give_back(connection, row, "returned", self.database.now())

    def qualification(self, annotator_id: str, campaign_id: str) -> Qualification:
        """Return how far the annotator is with the qualification."""
        with self.database.look() as connection:
            annotator, campaign = _who_and_what(connection, annotator_id, campaign_id)
            settings = CampaignSettings(**campaign.settings)
            return qualification(connection, settings, annotator, campaign_id)

    def return_expired(self, campaign_id: str) -> int:
        """Return the slots of leases that ran out to the pool, and how many those were."""
        where = {"campaign": campaign_id, "now": self.database.now()}
        with self.database.look() as connection:
            if connection.execute(_ANY_LATE, where).first() is None:
                return 0
        with self.database.write() as connection:
            late = connection.execute(_LATE, where).all()
            for row in sorted(late, key=lambda row: str(row.task_id)):
                give_back(connection, row, "returned", self.database.now())
            return len(late)

    def _before(
        self, connection: sa.Connection, annotator_id: str, campaign_id: str, *, lock: bool
    ) -> Sequence[Any]:
        """Return what is open or was returned, an open one first."""
        where = {"campaign": campaign_id, "annotator": annotator_id}
        return connection.execute(_BEFORE[lock], where).all()

    def _settle(
        self,
        connection: sa.Connection,
        campaign: Any,
        annotator_id: str,
        turn: Turn | None,
        plan: Plan | None,
    ) -> Assignment | None:
        """Give the annotator what they had, or else what was planned."""
        seconds = CampaignSettings(**campaign.settings).lease_seconds
        until = self.database.now() + timedelta(seconds=seconds)
        for row in self._before(connection, annotator_id, campaign.id, lock=True):
            if row.state == "returned" and (
                campaign.closed
                or (row.takes_slot and not take_slot(connection, row.task_id, wait=False))
            ):
                continue
            connection.execute(
                tables.assignments.update()
                .where(_given.id == row.id)
                .values(state="open", leased_until=until, ended_at=None)
            )
            return _assignment(connection, row.id)
        taken = plan.take(connection, turn.rng) if turn and plan else None
        if taken is None or turn is None or plan is None:
            return None
        task_id, probability = taken
        row = connection.execute(_TASK, {"task": task_id}).one()
        order = list(range(len(row.t_completions)))
        turn.rng.shuffle(order)
        given = Assignment(
            id=new_id(),
            task=rows.task(row),
            annotator_id=annotator_id,
            purpose=plan.purpose,
            order=order,
            strategy=plan.strategy,
            probability=probability,
            leased_until=until,
            guidelines_version=campaign.guidelines_version,
        )
        self._store(connection, given)
        return given

    def _store(self, connection: sa.Connection, given: Assignment) -> None:
        connection.execute(
            _INSERT,
            {
                "id": given.id,
                "task_id": given.task.id,
                "campaign_id": given.task.campaign_id,
                "annotator_id": given.annotator_id,
                "purpose": given.purpose,
                "state": "open",
                "takes_slot": given.purpose == "label",
                "shown": given.order,
                "strategy": given.strategy,
                "probability": given.probability,
                "guidelines_version": given.guidelines_version,
                "given_at": self.database.now(),
                "leased_until": given.leased_until,
            },
        )


def give_back(connection: sa.Connection, row: Any, state: str, now: Any) -> None:
    """End an open assignment without a label, and count its task's slots up."""
    connection.execute(
        tables.assignments.update().where(_given.id == row.id).values(state=state, ended_at=now)
    )
    if row.takes_slot:
        connection.execute(
            tables.tasks.update()
            .where(_task.id == row.task_id)
            .values(slots_left=_task.slots_left + 1)
        )


def lock(connection: sa.Connection, assignment_id: str, annotator_id: str) -> Any:
    """Return the row of an annotator's own assignment, locked until the transaction ends.

    It has the campaign's `settings`, too.

    Raises:
        NotYoursError: there is none.
    """
    where = {"assignment": assignment_id, "annotator": annotator_id}
    row = connection.execute(_MINE, where).one_or_none()
    if row is None:
        raise NotYoursError("there is no such task of yours")
    return row


def _assignment(connection: sa.Connection, assignment_id: str) -> Assignment:
    return rows.assignment(connection.execute(_ANYBODYS, {"assignment": assignment_id}).one())


def _who_and_what(
    connection: sa.Connection, annotator_id: str, campaign_id: str
) -> tuple[Any, Any]:
    annotator = connection.execute(_WHO, {"annotator": annotator_id}).one_or_none()
    campaign = connection.execute(_WHAT, {"campaign": campaign_id}).one_or_none()
    if annotator is None:
        raise NotYoursError("there is no such annotator who is active")
    if campaign is None:
        raise NotYoursError("there is no such campaign")
    return annotator, campaign
