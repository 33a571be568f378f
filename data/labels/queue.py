"""Which task an annotator gets next, and for how long.

A task may be taken by as many annotators as it has slots left. Taking one counts the slots down in
the same transaction that stores the assignment; a lease that ran out, a skip and a task given back
count them up again. An annotator who comes back late gets the same assignment again, with its order
and draft, unless somebody else took the slot meanwhile.

Locks are taken in one order (annotator, assignment, task), so that PostgreSQL sees no deadlock.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from data.errors import LabelConflictError, NotYoursError
from data.labels import rows, selection, tables
from data.labels.database import Database, new_id
from data.labels.qualification import qualification
from data.labels.records import (
    Assignment,
    CampaignSettings,
    Purpose,
    Qualification,
    Strategy,
)

POOL = 500
"""Tasks that a choice is made among: the first that are free, in the order of their place."""
REPEAT_AFTER = 5
"""Labels that lie between a task and its repeat, at least."""

_given, _task = tables.assignments.c, tables.tasks.c


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
        with self.database.write() as connection:
            annotator, campaign = _who_and_what(connection, annotator_id, campaign_id)
            settings = CampaignSettings(**campaign.settings)
            until = self.database.now() + timedelta(seconds=settings.lease_seconds)
            found = self._open(connection, annotator_id, campaign_id, until)
            if found is None and not campaign.closed:
                found = self._take_back(connection, annotator_id, campaign_id, until)
            if found is None and not campaign.closed:
                turn = _Turn(connection, settings, annotator, campaign_id)
                found = self._give(turn, campaign.guidelines_version, until)
            if found is None:
                return None
            return _assignment(connection, found)

    def assignment(self, assignment_id: str, annotator_id: str) -> Assignment | None:
        """Return the assignment if it is this annotator's."""
        query = (
            sa.select(*rows.ASSIGNMENT)
            .select_from(rows.joined())
            .where(_given.id == assignment_id, _given.annotator_id == annotator_id)
        )
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else rows.assignment(row)

    def state(self, assignment_id: str, annotator_id: str) -> str | None:
        """Return `open`, `done`, `skipped` or `returned`, or None if it is not the annotator's."""
        query = sa.select(_given.state).where(
            _given.id == assignment_id, _given.annotator_id == annotator_id
        )
        with self.database.read() as connection:
            return connection.execute(query).scalar_one_or_none()

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
            campaign = connection.execute(
                sa.select(tables.campaigns.c.settings).where(
                    tables.campaigns.c.id == row.campaign_id
                )
            ).one()
            seconds = CampaignSettings(**campaign.settings).lease_seconds
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
        with self.database.read() as connection:
            annotator, campaign = _who_and_what(connection, annotator_id, campaign_id, lock=False)
            settings = CampaignSettings(**campaign.settings)
            return qualification(connection, settings, annotator, campaign_id)

    def return_expired(self, campaign_id: str) -> int:
        """Return the slots of leases that ran out to the pool, and how many those were."""
        query = sa.select(tables.assignments).where(
            _given.campaign_id == campaign_id,
            _given.state == "open",
            _given.leased_until < self.database.now(),
            _given.takes_slot.is_(True),
        )
        with self.database.read() as connection:
            if connection.execute(query.limit(1)).first() is None:
                return 0
        with self.database.write() as connection:
            late = connection.execute(query.with_for_update(skip_locked=True)).all()
            for row in sorted(late, key=lambda row: str(row.task_id)):
                give_back(connection, row, "returned", self.database.now())
            return len(late)

    def _open(
        self, connection: sa.Connection, annotator_id: str, campaign_id: str, until: Any
    ) -> str | None:
        row = connection.execute(
            sa.select(_given.id, _given.leased_until)
            .where(
                _given.annotator_id == annotator_id,
                _given.campaign_id == campaign_id,
                _given.state == "open",
            )
            .with_for_update()
        ).one_or_none()
        if row is None:
            return None
        if row.leased_until < self.database.now():
            connection.execute(
                tables.assignments.update().where(_given.id == row.id).values(leased_until=until)
            )
        return str(row.id)

    def _take_back(
        self, connection: sa.Connection, annotator_id: str, campaign_id: str, until: Any
    ) -> str | None:
        returned = connection.execute(
            sa.select(tables.assignments)
            .where(
                _given.annotator_id == annotator_id,
                _given.campaign_id == campaign_id,
                _given.state == "returned",
            )
            .order_by(_given.given_at.desc())
            .with_for_update()
        ).all()
        for row in returned:
            if not row.takes_slot or take_slot(connection, row.task_id, wait=False):
                connection.execute(
                    tables.assignments.update()
                    .where(_given.id == row.id)
                    .values(state="open", leased_until=until, ended_at=None)
                )
                return str(row.id)
        return None

    def _give(self, turn: _Turn, guidelines_version: int, until: Any) -> str | None:
        choice = turn.choose()
        if choice is None:
            return None
        task_id, completions, purpose, strategy, probability = choice
        order = list(range(completions))
        turn.rng.shuffle(order)
        assignment_id = new_id()
        turn.connection.execute(
            tables.assignments.insert().values(
                id=assignment_id,
                task_id=task_id,
                campaign_id=turn.campaign_id,
                annotator_id=turn.annotator.id,
                purpose=purpose,
                state="open",
                takes_slot=purpose == "label",
                shown=order,
                strategy=strategy,
                probability=probability,
                guidelines_version=guidelines_version,
                given_at=self.database.now(),
                leased_until=until,
            )
        )
        return assignment_id


_Choice = tuple[str, int, Purpose, Strategy, float]
"""A task's id, how many completions it has, why it is given, by which strategy, how likely."""


class _Turn:
    """One choice for one annotator, inside the transaction that stores it."""

    def __init__(
        self,
        connection: sa.Connection,
        settings: CampaignSettings,
        annotator: Any,
        campaign_id: str,
    ) -> None:
        self.connection = connection
        self.settings = settings
        self.annotator = annotator
        self.campaign_id = campaign_id
        given = connection.execute(
            sa.select(sa.func.count()).where(
                _given.annotator_id == annotator.id, _given.campaign_id == campaign_id
            )
        ).scalar_one()
        # The same people who come in the same order get the same tasks in the same order.
        self.rng = random.Random(f"{settings.seed} {annotator.kind} {annotator.name} {given}")

    def choose(self) -> _Choice | None:
        """Return what is next for the annotator."""
        status = qualification(self.connection, self.settings, self.annotator, self.campaign_id)
        if not status.passed:
            return self._known_answer("qualification")
        pool = self._pool()
        if not pool:
            return None
        chance = self.rng.random()
        special = None
        if chance < self.settings.gold_share:
            special = self._known_answer("gold")
        elif chance < self.settings.gold_share + self.settings.repeat_share:
            special = self._repeat()
        return special or self._from_pool(pool)

    def _mine(self, *purposes: Purpose) -> sa.Exists:
        mine = tables.assignments.alias().c
        return sa.exists().where(
            mine.annotator_id == self.annotator.id,
            mine.task_id == _task.id,
            mine.purpose.in_(purposes),
        )

    def _known_answer(self, purpose: Purpose) -> _Choice | None:
        query = (
            sa.select(_task.id, _task.completions)
            .where(
                _task.campaign_id == self.campaign_id,
                _task.gold.is_(True),
                ~self._mine("qualification", "gold"),
            )
            .order_by(_task.place)
        )
        found = self.connection.execute(query).all()
        if not found:
            return None
        if purpose == "qualification":
            # Everybody qualifies on the same tasks.
            return found[0].id, len(found[0].completions), purpose, "random", 1.0
        row = self.rng.choice(found)
        return row.id, len(row.completions), purpose, "random", 1 / len(found)

    def _repeat(self) -> _Choice | None:
        query = (
            sa.select(_task.id, _task.completions, self._mine("repeat").label("repeated"))
            .select_from(rows.joined())
            .where(
                _given.annotator_id == self.annotator.id,
                _given.campaign_id == self.campaign_id,
                _given.purpose == "label",
                _given.state == "done",
            )
            .order_by(_given.ended_at.desc(), _given.id)
        )
        done = self.connection.execute(query).all()
        found = [row for row in done[REPEAT_AFTER:] if not row.repeated]
        if not found:
            return None
        row = self.rng.choice(found)
        return row.id, len(row.completions), "repeat", "random", 1 / len(found)

    def _pool(self) -> Sequence[Any]:
        query = (
            sa.select(_task.id, _task.priority)
            .where(
                _task.campaign_id == self.campaign_id,
                _task.gold.is_(False),
                _task.slots_left > 0,
                ~self._mine("label"),
            )
            .order_by(_task.place, _task.id)
            .limit(POOL)
        )
        return self.connection.execute(query).all()

    def _from_pool(self, pool: Sequence[Any]) -> _Choice | None:
        left = list(pool)
        weights = selection.probabilities([row.priority for row in left])
        while left:
            index, probability = selection.draw(weights, self.rng)
            chosen = left.pop(index)
            weights.pop(index)
            if take_slot(self.connection, chosen.id, wait=False):
                return self._taken(chosen.id, probability)
        # All were in somebody's hands for a moment; what they leave is still to be had.
        for row in sorted(pool, key=lambda row: str(row.id)):
            if take_slot(self.connection, row.id, wait=True):
                return self._taken(row.id, 1.0)
        return None

    def _taken(self, task_id: str, probability: float) -> _Choice:
        completions = self.connection.execute(
            sa.select(_task.completions).where(_task.id == task_id)
        ).scalar_one()
        return task_id, len(completions), "label", self.settings.strategy, probability


def take_slot(connection: sa.Connection, task_id: str, *, wait: bool) -> bool:
    """Count a task's slots down, and return whether there was one.

    Args:
        connection: in a transaction that writes.
        task_id: the task.
        wait: on PostgreSQL, whether to wait for a transaction that has the task in hand.
    """
    free = connection.execute(
        sa.select(_task.id)
        .where(_task.id == task_id, _task.slots_left > 0)
        .with_for_update(skip_locked=not wait)
    ).one_or_none()
    if free is None:
        return False
    connection.execute(
        tables.tasks.update().where(_task.id == task_id).values(slots_left=_task.slots_left - 1)
    )
    return True


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

    Raises:
        NotYoursError: there is none.
    """
    row = connection.execute(
        sa.select(tables.assignments)
        .where(_given.id == assignment_id, _given.annotator_id == annotator_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise NotYoursError("there is no such task of yours")
    return row


def _assignment(connection: sa.Connection, assignment_id: str) -> Assignment:
    row = connection.execute(
        sa.select(*rows.ASSIGNMENT).select_from(rows.joined()).where(_given.id == assignment_id)
    ).one()
    return rows.assignment(row)


def _who_and_what(
    connection: sa.Connection, annotator_id: str, campaign_id: str, *, lock: bool = True
) -> tuple[Any, Any]:
    """Return the rows of both; the annotator's is locked, so that two tabs take turns."""
    annotators, campaigns = tables.annotators.c, tables.campaigns.c
    query = sa.select(tables.annotators).where(
        annotators.id == annotator_id, annotators.active.is_(True)
    )
    annotator = connection.execute(query.with_for_update() if lock else query).one_or_none()
    campaign = connection.execute(
        sa.select(tables.campaigns).where(campaigns.id == campaign_id)
    ).one_or_none()
    if annotator is None:
        raise NotYoursError("there is no such annotator who is active")
    if campaign is None:
        raise NotYoursError("there is no such campaign")
    return annotator, campaign
