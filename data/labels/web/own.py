"""An annotator's own figures; nothing here looks at anybody else's labels."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from data.labels.campaign.qualification import agreed_pairs
from data.labels.records import Campaign
from data.labels.store import tables
from data.labels.store.database import Database

_PACE_OF = 20
"""Last labels that the pace is the median of."""
GOLD_EVERY = 25
"""Labels after which the agreement with gold is counted anew: a figure that moved with each label
would tell which tasks were gold."""
_GOLD_LEAST = 3

_given, _label, _task = tables.assignments.c, tables.labels.c, tables.tasks.c

# Every page of a task shows the pace: built once, and read from an index.
_MINE = sa.and_(
    _given.annotator_id == sa.bindparam("annotator"),
    _given.campaign_id == sa.bindparam("campaign"),
    _given.state == "done",
)
_COUNTED = sa.select(
    sa.func.count(),
    sa.func.coalesce(
        sa.func.sum(sa.case((_given.ended_at > sa.bindparam("day", type_=tables.UtcTime), 1))), 0
    ),
).where(_MINE)
_LAST = (
    sa.select(_label.seconds)
    .select_from(
        tables.assignments.join(
            tables.labels, sa.and_(_label.assignment_id == _given.id, _label.revision == 1)
        )
    )
    .where(_MINE)
    .order_by(_given.ended_at.desc())
    .limit(_PACE_OF)
)

# What is free, less what this annotator had of it, and what they have open.
_HAD = sa.and_(
    _given.annotator_id == sa.bindparam("annotator"),
    _given.campaign_id == sa.bindparam("campaign"),
    _given.purpose == "label",
)
_FREE = _task.slots_left > sa.literal_column("0")  # as in the index of free tasks
_LEFT = sa.select(
    sa.select(sa.func.count())
    .where(_task.campaign_id == sa.bindparam("campaign"), _task.gold.is_(False), _FREE)
    .scalar_subquery(),
    sa.select(sa.func.count())
    .select_from(tables.assignments.join(tables.tasks, _given.task_id == _task.id))
    .where(_HAD, _FREE)
    .scalar_subquery(),
    sa.select(sa.func.count()).where(_HAD, _given.state == "open").scalar_subquery(),
)


@dataclass(frozen=True)
class Pace:
    """How an annotator gets on.

    Attributes:
        done: tasks labelled, of all kinds.
        today: of the last 24 hours.
        seconds: median time of the last labels; None before the first.
    """

    done: int
    today: int
    seconds: float | None


@dataclass(frozen=True)
class Gold:
    """Agreement with known answers; `pairs` is 0 where there is nothing to tell yet."""

    tasks: int
    pairs: int
    agreed: int


def pace(database: Database, annotator_id: str, campaign_id: str) -> Pace:
    """Return how many tasks an annotator did in a campaign, and how fast."""
    day = database.now() - timedelta(days=1)
    where = {"annotator": annotator_id, "campaign": campaign_id}
    with database.look() as connection:
        done, today = connection.execute(_COUNTED, where | {"day": day}).one()
        seconds = connection.execute(_LAST, where).scalars().all()
    return Pace(done, int(today), statistics.median(seconds) if seconds else None)


def share(database: Database, annotator_id: str, campaign: Campaign, pace: Pace) -> int | None:
    """Return how many tasks an annotator did and may still do, as long as nobody else does them.

    None where there is no such number to tell: a live conversation has no tasks beforehand, and a
    number that does not go down would tell that the last task was gold, or a repeat.
    """
    settings = campaign.settings
    if settings.live or settings.gold_share or settings.repeat_share:
        return None
    where = {"annotator": annotator_id, "campaign": campaign.id}
    with database.look() as connection:
        free, had, now_open = connection.execute(_LEFT, where).one()
    return int(pace.done + (0 if campaign.closed else free - had) + now_open)


def gold_agreement(database: Database, annotator_id: str, campaign_id: str) -> Gold:
    """Return the agreement with gold among the annotator's labels, counted in whole batches.

    Only first revisions count; the qualification, which is told apart, does not.
    """
    query = (
        sa.select(_given.purpose, _label.ranks, _task.gold_ranks)
        .select_from(
            tables.assignments.join(tables.tasks, _given.task_id == _task.id).join(
                tables.labels, sa.and_(_label.assignment_id == _given.id, _label.revision == 1)
            )
        )
        .where(
            _given.annotator_id == annotator_id,
            _given.campaign_id == campaign_id,
            _given.purpose.not_in(("qualification", "adjudication")),
        )
        .order_by(_label.created_at, _label.id)
    )
    with database.read() as connection:
        labels = connection.execute(query).all()
    batches = labels[: len(labels) // GOLD_EVERY * GOLD_EVERY]
    parts = [agreed_pairs(row.ranks, row.gold_ranks) for row in batches if row.purpose == "gold"]
    if len(parts) < _GOLD_LEAST:
        return Gold(len(parts), 0, 0)
    return Gold(len(parts), sum(pairs for _, pairs in parts), sum(agreed for agreed, _ in parts))
