"""What admins look at, counted in the database."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from data.labels.store import tables
from data.labels.store.database import Database
from data.labels.web.giveaways import giveaways

_given, _task = tables.assignments.c, tables.tasks.c


@dataclass(frozen=True)
class Giveaway:
    """An answer that tells who wrote it."""

    task: str
    policy: str
    text: str
    why: list[str]


@dataclass(frozen=True)
class Giveaways:
    """How many answers of a campaign tell who wrote them; `first` are some of them."""

    answers: int
    found: int
    first: list[Giveaway]


def done_by(database: Database) -> dict[str, int]:
    """Return how many tasks each annotator did, by their id."""
    query = (
        sa.select(_given.annotator_id, sa.func.count())
        .where(_given.state == "done")
        .group_by(_given.annotator_id)
    )
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query).all()}


def find_giveaways(database: Database, campaign_id: str, *, limit: int) -> Giveaways:
    """Look through all answers of a campaign."""
    query = (
        sa.select(_task.key, _task.completions, _task.policies)
        .where(_task.campaign_id == campaign_id)
        .order_by(_task.key)
    )
    answers, found = 0, 0
    first: list[Giveaway] = []
    with database.read() as connection:
        for row in connection.execution_options(yield_per=500).execute(query):
            for place, text in enumerate(row.completions):
                answers += 1
                if not (why := giveaways(text)):
                    continue
                found += 1
                if len(first) < limit:
                    policy = row.policies[place] if row.policies else ""
                    first.append(Giveaway(row.key, policy, text, why))
    return Giveaways(answers, found, first)
