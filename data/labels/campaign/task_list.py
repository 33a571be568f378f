"""The tasks of a campaign, labelled or not."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from data.labels.records import Task
from data.labels.store import rows, tables
from data.labels.store.database import Database


def tasks_of(database: Database, campaign_id: str, *, gold: bool = False) -> Iterator[Task]:
    """Yield a campaign's tasks in the order they were made; `gold`: with those of known answer."""
    asked = tables.tasks.c.campaign_id == campaign_id
    query = (
        sa.select(*rows.TASK).where(asked).order_by(tables.tasks.c.created_at, tables.tasks.c.id)
    )
    with database.read() as connection:
        for row in connection.execute(query):
            task = rows.task(row)
            if gold or task.new.gold_ranks is None:
                yield task
