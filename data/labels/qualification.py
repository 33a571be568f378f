"""Gold tasks: how a label compares with the known ranks, and who may go on to real tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import sqlalchemy as sa

from data.labels import tables
from data.labels.records import CampaignSettings, Qualification


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
    task, given, label = tables.tasks.c, tables.assignments.c, tables.labels.c
    gold = connection.execute(
        sa.select(sa.func.count()).where(task.campaign_id == campaign_id, task.gold.is_(True))
    ).scalar_one()
    needed = min(settings.qualification_tasks, gold)
    # The first revision: the feedback, which tells the answer, comes after it.
    query = (
        sa.select(label.ranks, task.gold_ranks)
        .select_from(
            tables.assignments.join(tables.tasks, given.task_id == task.id).join(
                tables.labels, sa.and_(label.assignment_id == given.id, label.revision == 1)
            )
        )
        .where(
            given.annotator_id == annotator.id,
            given.campaign_id == campaign_id,
            given.purpose == "qualification",
        )
        .order_by(label.created_at)
    )
    done = connection.execute(query).all()
    last = [agreed_pairs(row.ranks, row.gold_ranks) for row in done[-needed:]] if needed else []
    agreed, pairs = sum(same for same, _ in last), sum(ordered for _, ordered in last)
    passed = len(done) >= needed and agreed >= settings.qualification_share * pairs
    skipped = connection.execute(
        sa.select(sa.func.count()).where(
            given.annotator_id == annotator.id,
            given.campaign_id == campaign_id,
            given.purpose == "qualification",
            given.state == "skipped",
        )
    ).scalar_one()
    failed = not passed and len(done) + skipped >= gold
    return Qualification(needed, len(done), pairs, agreed, passed=passed, failed=failed)
