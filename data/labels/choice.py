"""The choice of one task for one annotator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from data.labels import rows, selection, tables
from data.labels.qualification import qualification
from data.labels.records import CampaignSettings, Purpose, Strategy

POOL = 500
"""Tasks that a choice is made among: the first that are free, in the order of their place."""
REPEAT_AFTER = 5
"""Labels that lie between a task and its repeat, at least."""

_given, _task = tables.assignments.c, tables.tasks.c

Choice = tuple[str, int, Purpose, Strategy, float]
"""A task's id, how many completions it has, why it is given, by which strategy, how likely."""


class Turn:
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

    def choose(self) -> Choice | None:
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

    def _known_answer(self, purpose: Purpose) -> Choice | None:
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

    def _repeat(self) -> Choice | None:
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

    def _from_pool(self, pool: Sequence[Any]) -> Choice | None:
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

    def _taken(self, task_id: str, probability: float) -> Choice:
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
