"""The next task of one annotator.

A plan is read first, without keeping others from writing; then its task is taken in a transaction
that is as short as can be, with all that may have changed meanwhile checked again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from data.labels.campaign import active_selection
from data.labels.campaign.qualification import qualification
from data.labels.records import CampaignSettings, Purpose, Strategy
from data.labels.store import rows, tables

POOL = 200
"""Tasks that a choice is made among: the first that are free, in the order of their place."""
REPEAT_AFTER = 5
"""Labels that lie between a task and its repeat, at least."""

_given, _task = tables.assignments.c, tables.tasks.c


def _given_before(annotator_id: Any, *purposes: Purpose) -> sa.Exists:
    mine = tables.assignments.alias().c
    return sa.exists().where(
        mine.annotator_id == annotator_id, mine.task_id == _task.id, mine.purpose.in_(purposes)
    )


# Statements that every annotator needs for every task are built once: building one costs as much
# as running it.
_CAMPAIGN: sa.BindParameter[str] = sa.bindparam("campaign")
_ANNOTATOR: sa.BindParameter[str] = sa.bindparam("annotator")
_SLOT: sa.BindParameter[str] = sa.bindparam("slot")
# Written out, as in the index of free tasks: with a parameter in its place SQLite looks into each
# task and PostgreSQL plans the statement anew each time, since only then it may use that index.
_FREE_SLOT = _task.slots_left > sa.literal_column("0")
_GIVEN_SO_FAR = sa.select(sa.func.count()).where(
    _given.annotator_id == _ANNOTATOR, _given.campaign_id == _CAMPAIGN
)
_POOL = (
    sa.select(_task.id, _task.priority)
    .where(
        _task.campaign_id == _CAMPAIGN,
        _task.gold.is_(False),
        _FREE_SLOT,
        ~_given_before(_ANNOTATOR, "label", "adjudication"),
    )
    .order_by(_task.place, _task.id)
    .limit(POOL)
)
_FREE = sa.select(_task.id).where(_task.id == _SLOT, _FREE_SLOT)
_TAKE = {
    wait: tables.tasks.update()
    .where(_task.id == _FREE.with_for_update(skip_locked=not wait).scalar_subquery())
    .values(slots_left=_task.slots_left - 1)
    for wait in (False, True)
}


@dataclass
class Plan:
    """What an annotator may be given, drawn from what was read; still to be taken.

    Attributes:
        purpose: why.
        strategy: by which the task is drawn.
        tasks: ids to draw from.
        weights: of each, in proportion to its chance.
    """

    purpose: Purpose
    strategy: Strategy
    tasks: list[str]
    weights: list[float]

    def take(self, connection: sa.Connection, rng: random.Random) -> tuple[str, float] | None:
        """Return the task that was drawn and its chance; one with slots has one less then."""
        tasks, weights = list(self.tasks), list(self.weights)
        while tasks:
            index, probability = active_selection.draw(weights, rng)
            task_id = tasks.pop(index)
            weights.pop(index)
            if self.purpose != "label" or take_slot(connection, task_id, wait=False):
                return task_id, probability
        # All were in somebody's hands for a moment; what they leave is still to be had.
        for task_id in sorted(self.tasks):
            if take_slot(connection, task_id, wait=True):
                return task_id, 1.0
        return None


class Turn:
    """One choice for one annotator."""

    def __init__(self, connection: sa.Connection, campaign: Any, annotator: Any) -> None:
        self.connection = connection
        self.settings = settings = CampaignSettings(**campaign.settings)
        self.annotator = annotator
        self.campaign_id = campaign.id
        where = {"campaign": campaign.id, "annotator": annotator.id}
        given = connection.execute(_GIVEN_SO_FAR, where).scalar_one()
        # The same people who come in the same order get the same tasks in the same order.
        self.rng = random.Random(f"{settings.seed} {annotator.kind} {annotator.name} {given}")

    def plan(self) -> Plan | None:
        """Return what the annotator may be given next; None when there is nothing."""
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
        if special is not None:
            return special
        weights = active_selection.probabilities([row.priority for row in pool])
        return Plan("label", self.settings.strategy, [row.id for row in pool], weights)

    def _known_answer(self, purpose: Purpose) -> Plan | None:
        query = (
            sa.select(_task.id)
            .where(
                _task.campaign_id == self.campaign_id,
                _task.gold.is_(True),
                ~_given_before(self.annotator.id, "qualification", "gold"),
            )
            .order_by(_task.place)
        )
        gold_tasks = self.connection.execute(query).scalars().all()
        if purpose == "qualification":
            # Everybody qualifies on the same tasks.
            gold_tasks = gold_tasks[:1]
        return _evenly(purpose, gold_tasks)

    def _repeat(self) -> Plan | None:
        query = (
            sa.select(_task.id, _given_before(self.annotator.id, "repeat").label("repeated"))
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
        return _evenly("repeat", [row.id for row in done[REPEAT_AFTER:] if not row.repeated])

    def _pool(self) -> Sequence[Any]:
        where = {"campaign": self.campaign_id, "annotator": self.annotator.id}
        return self.connection.execute(_POOL, where).all()


def _evenly(purpose: Purpose, tasks: Sequence[str]) -> Plan | None:
    return Plan(purpose, "random", list(tasks), [1.0] * len(tasks)) if tasks else None


def take_slot(connection: sa.Connection, task_id: str, *, wait: bool) -> bool:
    """Count a task's slots down, in a transaction that writes; return whether there was one.

    `wait` is for PostgreSQL: whether to wait for a transaction that has the task in hand.
    """
    return connection.execute(_TAKE[wait], {"slot": task_id}).rowcount == 1
