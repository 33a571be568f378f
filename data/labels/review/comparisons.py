"""Which comparisons of a campaign were labelled, and what was said of each; for admins alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from data.errors import NotYoursError
from data.labels.records import Annotator, LabelRow, Purpose, Task
from data.labels.store import rows, tables
from data.labels.store.database import Database
from data.records import Prompt

PAGE = 50
"""Comparisons of a page."""
_given, _label, _task = tables.assignments.c, tables.labels.c, tables.tasks.c
_who = tables.annotators.c
_campaign = tables.campaigns.c
# JSON is compared as the text that it is stored as, on either database.
_RANKS, _FLAGS, _COMMENT = (
    sa.cast(one, sa.Text) for one in (_label.ranks, _label.flags, _label.comment)
)
_SAID = _given.state.in_(("done", "adjudicated"))


@dataclass(frozen=True)
class Wanted:
    """Which comparisons are looked for; those of one label alone are of the same label.

    Attributes:
        disagreement: only those that annotators ranked differently.
        annotator: id of who labelled it; "" is anybody.
        flag: set in a label; "" is any or none.
        comment: only those with one in a label.
        adjudicated: only those that were, or were not.
    """

    disagreement: bool = False
    annotator: str = ""
    flag: str = ""
    comment: bool = False
    adjudicated: Literal["", "yes", "no"] = ""


@dataclass
class Listed:
    """A comparison in the list.

    Attributes:
        labels: last revisions, the adjudication apart.
        people: who gave them.
        differ: whether annotators ranked it differently.
        flags: how many are set.
    """

    task_id: str
    prompt: Prompt
    gold: bool
    last_at: datetime
    labels: int = 0
    people: list[str] = field(default_factory=list)
    differ: bool = False
    flags: int = 0
    comments: int = 0
    adjudicated: bool = False


@dataclass(frozen=True)
class Listing:
    """A page of the list; `page` counts from 1, and is the last one where fewer were asked for."""

    found: int
    page: int
    pages: int
    shown: list[Listed]


@dataclass(frozen=True)
class Said:
    """A revision of a label, or of an adjudication; `counts` where it is neither old nor undone."""

    row: LabelRow
    counts: bool


class Comparisons:
    """The labelled tasks of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def find(self, campaign_id: str, wanted: Wanted, *, page: int = 1) -> Listing:
        """Return a page of what was labelled, what was labelled last first."""
        chosen = _chosen(campaign_id, wanted).subquery()
        # Counted along with the page: to choose is all of the work.
        found = sa.func.count().over().label("found")
        ordered = (
            sa.select(chosen.c.task_id, chosen.c.last_at, found)
            .order_by(chosen.c.last_at.desc(), chosen.c.task_id)
            .limit(PAGE)
        )
        with self.database.read() as connection:
            page = max(1, page)
            ids = connection.execute(ordered.offset(PAGE * (page - 1))).all()
            if not ids and page > 1:  # behind the last page
                count = connection.scalar(sa.select(sa.func.count()).select_from(chosen)) or 0
                page = max(1, -(-count // PAGE))
                ids = connection.execute(ordered.offset(PAGE * (page - 1))).all()
            shown = _listed(connection, {row.task_id: row.last_at for row in ids})
        total = ids[0].found if ids else 0
        return Listing(total, page, max(1, -(-total // PAGE)), shown)

    def neighbours(
        self, campaign_id: str, wanted: Wanted, task_id: str
    ) -> tuple[str | None, str | None]:
        """Return the comparisons before and after one in the list; None where there is none.

        One that is not in the list any more, for it was just decided, is taken where it would be.
        """
        chosen = _chosen(campaign_id, wanted).subquery()
        newest = _chosen(campaign_id, Wanted()).where(_given.task_id == task_id).subquery()
        with self.database.read() as connection:
            at = connection.scalar(sa.select(newest.c.last_at))
            if at is None:
                return None, None
            # Later ones stand before it; of one moment, those of a lower id.
            before = sa.or_(
                chosen.c.last_at > at,
                sa.and_(chosen.c.last_at == at, chosen.c.task_id < task_id),
            )
            query = sa.select(chosen.c.task_id).where(chosen.c.task_id != task_id).limit(1)
            first = query.where(before).order_by(chosen.c.last_at, chosen.c.task_id.desc())
            after = query.where(~before).order_by(chosen.c.last_at.desc(), chosen.c.task_id)
            return connection.scalar(first), connection.scalar(after)

    def annotators(self, campaign_id: str) -> list[Annotator]:
        """Return who gave labels in a campaign, by name."""
        query = (
            sa.select(*rows.ANNOTATOR)
            .where(
                _who.id.in_(
                    sa.select(_given.annotator_id).where(_given.campaign_id == campaign_id, _SAID)
                )
            )
            .order_by(_who.name)
        )
        with self.database.look() as connection:
            return [rows.annotator(row) for row in connection.execute(query).all()]

    def said(self, campaign_id: str, task_id: str) -> tuple[Task, list[Said]]:
        """Return a task and all that was said of it, each label's revisions after each other.

        Raises:
            NotYoursError: the campaign has no such task.
        """
        of_it = sa.and_(_task.id == task_id, _task.campaign_id == campaign_id)
        query = (
            sa.select(
                *(*rows.LABEL, *rows.ASSIGNMENT, *rows.ANNOTATOR),
                _campaign.name.label("c_name"),
                _campaign.settings.label("c_settings"),
            )
            .select_from(
                rows.joined()
                .join(tables.annotators, _given.annotator_id == _who.id)
                .join(tables.labels, _label.assignment_id == _given.id)
                .join(tables.campaigns, _campaign.id == _given.campaign_id)
            )
            .where(of_it)
            .order_by(_given.ended_at, _given.id, _label.revision)
        )
        with self.database.read() as connection:
            task = connection.execute(sa.select(*rows.TASK).where(of_it)).one_or_none()
            found = connection.execute(query).all()
        if task is None:
            raise NotYoursError("there is no such comparison")
        last = {row.a_id: row.l_revision for row in found}
        return rows.task(task), [
            Said(
                rows.label_row(row),
                counts=row.l_revision == last[row.a_id] and row.a_state != "withdrawn",
            )
            for row in found
        ]


def _last_labels() -> sa.Join:
    """Return assignments with the last revision of the label of each."""
    other = tables.labels.alias().c
    newest = (
        sa.select(sa.func.max(other.revision))
        .where(other.assignment_id == _given.id)
        .correlate(tables.assignments)
        .scalar_subquery()
    )
    return tables.assignments.join(
        tables.labels, sa.and_(_label.assignment_id == _given.id, _label.revision == newest)
    )


def _chosen(campaign_id: str, wanted: Wanted) -> sa.Select[Any]:
    """Return the tasks that are looked for, each with when it was labelled last."""
    own = _given.purpose != "adjudication"
    # An adjudication is no news: who goes through a list from its top keeps their place.
    last_at = sa.func.max(sa.case((own, _label.created_at))).label("last_at")
    query = (
        sa.select(
            _given.task_id,
            sa.func.coalesce(last_at, sa.func.max(_label.created_at)).label("last_at"),
        )
        .select_from(_last_labels())
        .where(_given.campaign_id == campaign_id, _SAID)
        .group_by(_given.task_id)
    )
    one_label = []
    if wanted.annotator:
        one_label.append(_given.annotator_id == wanted.annotator)
    if wanted.flag:
        one_label.append(_FLAGS.contains(f'"{wanted.flag}"', autoescape=True))
    if wanted.comment:
        one_label.append(_COMMENT != '""')
    if one_label:
        query = query.having(sa.func.sum(sa.case((sa.and_(*one_label), 1), else_=0)) > 0)
    if wanted.disagreement:
        query = query.having(_ORDERS > 1)
    if wanted.adjudicated:
        decided = sa.func.sum(sa.case((own, 0), else_=1))
        query = query.having(decided > 0 if wanted.adjudicated == "yes" else decided == 0)
    return query


_ORDERS = sa.func.count(sa.distinct(sa.case((_given.purpose == "label", _RANKS))))


def _listed(connection: sa.Connection, last_at: dict[str, datetime]) -> list[Listed]:
    """Return what the list tells of some tasks, in their order."""
    task = sa.select(_task.id, _task.prompt, _task.gold).where(_task.id.in_(last_at))
    found = {
        row.id: Listed(row.id, row.prompt, row.gold, last_at[row.id])
        for row in connection.execute(task).all()
    }
    query = (
        sa.select(
            _given.task_id, _given.purpose, _who.name, _label.ranks, _label.flags, _label.comment
        )
        .select_from(_last_labels().join(tables.annotators, _who.id == _given.annotator_id))
        .where(_given.task_id.in_(last_at), _SAID)
        .order_by(_label.created_at, _label.id)
    )
    orders: dict[str, set[tuple[int, ...]]] = {}
    for row in connection.execute(query).all():
        one = found[row.task_id]
        purpose: Purpose = row.purpose
        if purpose == "adjudication":
            one.adjudicated = True
            continue
        one.labels += 1
        if row.name not in one.people:
            one.people.append(row.name)
        one.flags += sum(map(len, row.flags))
        one.comments += bool(row.comment)
        if purpose == "label":
            orders.setdefault(row.task_id, set()).add(tuple(row.ranks))
            one.differ = len(orders[row.task_id]) > 1
    return [found[task_id] for task_id in last_at]
