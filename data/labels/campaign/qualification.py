"""Gold tasks: how a label compares with the known ranks, and who may go on to real tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import sqlalchemy as sa

from data.labels.records import CampaignSettings, Qualification
from data.labels.store import tables

_task, _given, _label = tables.tasks.c, tables.assignments.c, tables.labels.c
# Built once, as in `next_task`.
_WHERE = sa.and_(
    _given.annotator_id == sa.bindparam("annotator"),
    _given.campaign_id == sa.bindparam("campaign"),
    _given.purpose == "qualification",
)
_GOLD = sa.select(sa.func.count()).where(
    _task.campaign_id == sa.bindparam("campaign"), _task.gold.is_(True)
)
# The first revision: the feedback, which tells the answer, comes after it.
_DONE = (
    sa.select(_label.ranks, _task.gold_ranks)
    .select_from(
        tables.assignments.join(tables.tasks, _given.task_id == _task.id).join(
            tables.labels, sa.and_(_label.assignment_id == _given.id, _label.revision == 1)
        )
    )
    .where(_WHERE, _given.state == "done")
    .order_by(_label.created_at)
)
_SKIPPED = sa.select(sa.func.count()).where(_WHERE, _given.state == "skipped")


def agreed_pairs(ranks: Sequence[int], gold_ranks: Sequence[int]) -> tuple[int, int]:
    """Return how many pairs are ordered as in gold, and how many gold orders; ties are no order."""
    ordered = [
        (i, j) for i, j in combinations(range(len(gold_ranks)), 2) if gold_ranks[i] != gold_ranks[j]
    ]
    same = sum(
        (ranks[i] < ranks[j]) == (gold_ranks[i] < gold_ranks[j]) and ranks[i] != ranks[j]
        for i, j in ordered
    )
    return same, len(ordered)


def qualification(
    connection: sa.Connection, settings: CampaignSettings, annotator: Any, campaign_id: str
) -> Qualification:
    """Return how far an annotator is with a campaign's qualification.

    The last `qualification_tasks` of them count, so that who fails may learn and try again while
    there are gold tasks. Only persons qualify: other annotators learn nothing from feedback. A
    campaign with fewer gold tasks than it asks for asks for those it has.

    Args:
        connection: to read with.
        settings: of the campaign.
        annotator: with `id` and `kind`.
        campaign_id: the campaign.
    """
    if settings.qualification_tasks == 0 or annotator.kind != "person":
        return Qualification(0, 0, 0, 0, passed=True, failed=False)
    where = {"annotator": annotator.id, "campaign": campaign_id}
    done = connection.execute(_DONE, where).all()
    needed = settings.qualification_tasks
    if len(done) < needed:
        needed = min(needed, connection.execute(_GOLD, where).scalar_one())
    last = [agreed_pairs(row.ranks, row.gold_ranks) for row in done[-needed:]] if needed else []
    agreed, pairs = sum(same for same, _ in last), sum(ordered for _, ordered in last)
    passed = len(done) >= needed and agreed >= settings.qualification_share * pairs
    failed = False
    if not passed:
        gold = connection.execute(_GOLD, where).scalar_one()
        failed = len(done) + connection.execute(_SKIPPED, where).scalar_one() >= gold
    return Qualification(needed, len(done), pairs, agreed, passed=passed, failed=failed)
