"""What annotators do with a task: submit, revise, skip, and keep a draft.

A label is never changed or deleted. `submit` stores revision 1, `revise` a further one; sending the
same submission again, which browsers and people do, stores nothing and returns what is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import sqlalchemy as sa

from data.errors import InvalidLabelError, LabelConflictError, NotYoursError
from data.labels.campaign.next_task import take_slot
from data.labels.campaign.qualification import agreed_pairs
from data.labels.campaign.queue import give_back, lock
from data.labels.records import (
    SKIP_REASONS,
    CampaignSettings,
    Feedback,
    Label,
    LabelRow,
    Skip,
    Submission,
)
from data.labels.store import rows, tables
from data.labels.store.database import Database, new_id

REVISABLE = 20
"""How many of one's own last labels may be revised."""
_CHUNK = 500

_given, _label = tables.assignments.c, tables.labels.c

# What every label and draft needs is built once, as in `next_task`.
_ID: sa.BindParameter[str] = sa.bindparam("assignment")
_KNOWN = sa.select(*rows.LABEL).where(_label.assignment_id == _ID).order_by(_label.revision)
_DONE = (
    tables.assignments.update()
    .where(_given.id == _ID)
    .values(state="done", ended_at=sa.bindparam("now", type_=tables.UtcTime))
)
_COUNT = (
    tables.tasks.update()
    .where(tables.tasks.c.id == sa.bindparam("task"))
    .values(done=tables.tasks.c.done + 1)
)
_INSERT = tables.labels.insert()
_FORGET = tables.drafts.delete().where(tables.drafts.c.assignment_id == _ID)
_KEEP = tables.drafts.insert()
_DRAFT = (
    sa.select(tables.drafts.c.body)
    .join(tables.assignments, tables.drafts.c.assignment_id == _given.id)
    .where(_given.id == _ID, _given.annotator_id == sa.bindparam("annotator"))
)


class Submissions:
    """Takes what annotators say."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def submit(self, assignment_id: str, annotator_id: str, submission: Submission) -> Label:
        """Store the first label of an assignment; when this returns, it is on the disk.

        Raises:
            NotYoursError: the assignment is not this annotator's.
            InvalidLabelError: not what the campaign asks.
            LabelConflictError: another submission was there before, the task was skipped, or its
                lease ran out and somebody else took it.
        """
        with self.database.write() as connection:
            row = lock(connection, assignment_id, annotator_id)
            known = _labels(connection, row)
            if (again := _again(known, submission)) is not None:
                return again
            if known:
                raise LabelConflictError("this task is labelled already: revise that label")
            if row.state == "skipped":
                raise LabelConflictError("this task was skipped: go on to the next one")
            _check(row, submission)
            late = row.state == "returned" and row.takes_slot
            if late and not take_slot(connection, row.task_id, wait=True):
                raise LabelConflictError(
                    "the time for this task ran out and somebody else labels it now: "
                    "go on to the next one"
                )
            now = self.database.now()
            connection.execute(_DONE, {"assignment": assignment_id, "now": now})
            if row.purpose == "label":
                connection.execute(_COUNT, {"task": row.task_id})
            _forget_draft(connection, assignment_id)
            return self._store(connection, assignment_id, 1, submission)

    def revise(self, label_id: str, annotator_id: str, submission: Submission) -> Label:
        """Store a further revision of one of the annotator's own last labels.

        Raises:
            NotYoursError: the label is not this annotator's.
            InvalidLabelError: not what the campaign asks.
            LabelConflictError: too old, or of the qualification, whose answer was told.
        """
        with self.database.write() as connection:
            assignment_id = connection.execute(
                sa.select(_label.assignment_id).where(_label.id == label_id)
            ).scalar_one_or_none()
            if assignment_id is None:
                raise NotYoursError("there is no such label of yours")
            row = lock(connection, assignment_id, annotator_id)
            known = _labels(connection, row)
            if (again := _again(known, submission)) is not None:
                return again
            if row.purpose == "qualification":
                raise LabelConflictError("labels of the qualification are not revised")
            last = connection.execute(
                sa.select(_given.id)
                .where(
                    _given.annotator_id == annotator_id,
                    _given.campaign_id == row.campaign_id,
                    _given.state == "done",
                )
                .order_by(_given.ended_at.desc(), _given.id)
                .limit(REVISABLE)
            ).scalars()
            if row.id not in set(last):
                raise LabelConflictError(f"only your last {REVISABLE} labels can be revised")
            _check(row, submission)
            _forget_draft(connection, row.id)
            return self._store(connection, row.id, known[-1].revision + 1, submission)

    def skip(self, assignment_id: str, annotator_id: str, reason: str) -> None:
        """Give a task back that the annotator will not label; they do not get it again.

        Raises:
            NotYoursError: the assignment is not this annotator's.
            InvalidLabelError: not a key of `SKIP_REASONS`.
            LabelConflictError: it is labelled already.
        """
        if reason not in SKIP_REASONS:
            raise InvalidLabelError(f"{reason!r} is no reason to skip; {', '.join(SKIP_REASONS)}")
        with self.database.write() as connection:
            row = lock(connection, assignment_id, annotator_id)
            if row.state == "skipped":
                return
            if row.state == "done":
                raise LabelConflictError("this task is labelled already")
            now = self.database.now()
            if row.state == "open":
                give_back(connection, row, "skipped", now)
            connection.execute(
                tables.assignments.update()
                .where(_given.id == assignment_id)
                .values(state="skipped", ended_at=now, skip_reason=reason)
            )
            _forget_draft(connection, assignment_id)

    def save_draft(
        self,
        assignment_id: str,
        annotator_id: str,
        body: dict[str, Any],
        *,
        revising: bool = False,
    ) -> None:
        """Keep what the annotator has so far, over what was kept before.

        Args:
            assignment_id: of the task.
            annotator_id: whose it is.
            body: what the page holds.
            revising: of a further revision of a label; such a draft goes when that is stored.

        Raises:
            NotYoursError: the assignment is not this annotator's.
            LabelConflictError: it is labelled or skipped already; or, to revise, not labelled, or
                the page it comes from sent its revision meanwhile.
        """
        with self.database.write(durable=False) as connection:
            row = lock(connection, assignment_id, annotator_id)
            if row.state == "skipped" or (row.state == "done") != revising:
                raise LabelConflictError("this task is not open any more: go on to the next one")
            if any(label.submission.key == body.get("key") for label in _labels(connection, row)):
                raise LabelConflictError("a label was sent from this page already: reload it")
            _forget_draft(connection, assignment_id)
            values = {"body": body, "updated_at": self.database.now()}
            connection.execute(_KEEP, {"assignment_id": assignment_id, **values})

    def draft(self, assignment_id: str, annotator_id: str) -> dict[str, Any] | None:
        """Return what was kept, if the assignment is this annotator's."""
        where = {"assignment": assignment_id, "annotator": annotator_id}
        with self.database.look() as connection:
            body: dict[str, Any] | None = connection.execute(_DRAFT, where).scalar_one_or_none()
        return body

    def labels(
        self, campaign_id: str, *, revisions: Literal["last", "all"] = "last"
    ) -> Iterator[LabelRow]:
        """Yield the labels of a campaign in the order they came in, as of one moment.

        Gold tasks, repeats, the qualification and adjudications that stand are among them: see
        `assignment.purpose`.
        """
        query = _label_rows(last=revisions == "last").where(
            _given.campaign_id == campaign_id, _given.state != "withdrawn"
        )
        query = query.order_by(_label.created_at, _label.id)
        with self.database.read() as connection:
            result = connection.execution_options(yield_per=_CHUNK).execute(query)
            for row in result:
                yield rows.label_row(row)

    def mine(self, annotator_id: str, campaign_id: str, limit: int) -> list[LabelRow]:
        """Return the annotator's own last labels, newest first, each in its last revision."""
        query = (
            _label_rows(last=True)
            .where(
                _given.annotator_id == annotator_id,
                _given.campaign_id == campaign_id,
                _given.purpose != "adjudication",  # is corrected where it was made
            )
            .order_by(_given.ended_at.desc(), _given.id)
            .limit(limit)
        )
        with self.database.read() as connection:
            return [rows.label_row(row) for row in connection.execute(query).all()]

    def skips(self, campaign_id: str) -> list[Skip]:
        """Return what was skipped, in order."""
        query = (
            sa.select(*rows.ASSIGNMENT, *rows.ANNOTATOR)
            .select_from(_with_annotators(rows.joined()))
            .where(_given.campaign_id == campaign_id, _given.state == "skipped")
            .order_by(_given.ended_at, _given.id)
        )
        with self.database.read() as connection:
            skipped = connection.execute(query).all()
        return [
            Skip(rows.assignment(row), rows.annotator(row), row.a_skip_reason, row.a_ended_at)
            for row in skipped
        ]

    def skipped_by(self, campaign_id: str) -> dict[str, int]:
        """Return how many tasks each annotator skipped, by name; those who skipped none are out."""
        names = tables.annotators.c.name
        query = (
            sa.select(names, sa.func.count())
            .join(tables.assignments, _given.annotator_id == tables.annotators.c.id)
            .where(_given.campaign_id == campaign_id, _given.state == "skipped")
            .group_by(names)
            .order_by(names)
        )
        with self.database.look() as connection:
            return {name: count for name, count in connection.execute(query).all()}

    def gold_feedback(self, label: Label) -> Feedback | None:
        """Return how a label of the qualification compares with gold; None for any other."""
        query = (
            sa.select(_given.purpose, tables.tasks.c.gold_ranks, tables.tasks.c.gold_note)
            .select_from(rows.joined())
            .where(_given.id == label.assignment_id)
        )
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.purpose != "qualification":
            return None
        agreed, pairs = agreed_pairs(label.submission.ranks, row.gold_ranks)
        return Feedback(label.submission.ranks, row.gold_ranks, pairs, agreed, row.gold_note)

    def _store(
        self, connection: sa.Connection, assignment_id: str, revision: int, submission: Submission
    ) -> Label:
        label = Label(new_id(), assignment_id, revision, submission, self.database.now())
        values = dataclasses.asdict(submission)
        values["submission_key"] = values.pop("key")
        values |= {"id": label.id, "assignment_id": assignment_id}
        values |= {"revision": revision, "created_at": label.created_at}
        connection.execute(_INSERT, values)
        return label


def _check(row: Any, submission: Submission) -> None:
    mode = CampaignSettings(**row.settings).mode
    problem = submission.problem(completions=len(row.shown), mode=mode)
    if problem:
        raise InvalidLabelError(problem)


def _labels(connection: sa.Connection, row: Any) -> list[Label]:
    """Return the labels of an assignment; only one that is done has any."""
    if row.state != "done":
        return []
    known = connection.execute(_KNOWN, {"assignment": row.id})
    return [rows.label(one) for one in known.all()]


def _again(known: list[Label], submission: Submission) -> Label | None:
    """Return the label that this very submission stored before."""
    for label in known:
        if label.submission.key != submission.key:
            continue
        # A page that sends again may have counted on.
        if dataclasses.replace(label.submission, seconds=submission.seconds) != submission:
            raise LabelConflictError(
                "another label was sent under the same key: reload the page and revise that label"
            )
        return label
    return None


def _forget_draft(connection: sa.Connection, assignment_id: str) -> None:
    connection.execute(_FORGET, {"assignment": assignment_id})


def _with_annotators(join: sa.Join) -> sa.Join:
    return join.join(tables.annotators, _given.annotator_id == tables.annotators.c.id)


def _label_rows(*, last: bool) -> sa.Select[Any]:
    campaigns = tables.campaigns.c
    source = (
        _with_annotators(rows.joined())
        .join(tables.labels, _label.assignment_id == _given.id)
        .join(tables.campaigns, campaigns.id == _given.campaign_id)
    )
    query = sa.select(
        *rows.LABEL,
        *rows.ASSIGNMENT,
        *rows.ANNOTATOR,
        campaigns.name.label("c_name"),
        campaigns.settings.label("c_settings"),
    ).select_from(source)
    if last:
        other = tables.labels.alias()
        newest = (
            sa.select(sa.func.max(other.c.revision))
            .where(other.c.assignment_id == _given.id)
            .correlate(tables.assignments)
            .scalar_subquery()
        )
        query = query.where(_label.revision == newest)
    return query
