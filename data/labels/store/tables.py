"""The tables of the label store, as SQLAlchemy Core sees them.

`migrations/` makes them; a test compares the two. What must never happen is refused by the
database itself and not only by our code: a task with more takers than wanted (`slots_left >= 0`),
two open tasks in front of one annotator (`one_open_assignment`), two adjudications of one task
(`one_adjudication`), two equal revisions, a label or an audit entry that is changed or deleted
(triggers, in the migration).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A moment, always aware and in UTC; SQLite, which knows no zones, holds it without one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Refuse naive times; drop the zone for SQLite."""
        if value is None:
            return None
        assert value.tzinfo is not None, f"{value} has no time zone"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return it aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(32), primary_key=True)


def _to(target: str, name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(32), sa.ForeignKey(target), **({"nullable": False} | options))


def _text(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **({"nullable": False} | options))


def _json(name: str, **options: Any) -> sa.Column[Any]:
    # JSON and not JSONB: JSONB refuses \u0000, which a model may well have written.
    return sa.Column(name, sa.JSON(none_as_null=True), **({"nullable": False} | options))


def _time(name: str, **options: Any) -> sa.Column[datetime]:
    return sa.Column(name, UtcTime, **({"nullable": False} | options))


campaigns = sa.Table(
    "campaigns",
    metadata,
    _id(),
    _text("name", unique=True),
    # In the researcher's words, for people to read.
    _text("title", nullable=True),
    _json("settings"),
    sa.Column("guidelines_version", sa.Integer, nullable=False),
    sa.Column("closed", sa.Boolean, nullable=False),
    _time("created_at"),
)

guidelines = sa.Table(
    "guidelines",
    metadata,
    sa.Column("campaign_id", sa.String(32), sa.ForeignKey("campaigns.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    _text("body"),
    _time("created_at"),
    # The admin who wrote it on the page; none where a recipe or a command gave it.
    _text("edited_by", nullable=True),
)

tasks = sa.Table(
    "tasks",
    metadata,
    _id(),
    _to("campaigns.id", "campaign_id"),
    _text("key"),
    _json("prompt"),
    _json("completions"),
    _json("policies"),
    _json("scores"),
    _json("gold_ranks", nullable=True),
    _json("gold_note"),
    _json("meta"),
    sa.Column("gold", sa.Boolean, nullable=False),
    # How many annotators are to label it, how many more may take it now, how many have done so.
    sa.Column("wanted", sa.Integer, nullable=False),
    sa.Column("slots_left", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    # The place in the order of giving: lower comes into the pool first.
    sa.Column("place", sa.Float, nullable=False),
    sa.Column("priority", sa.Float, nullable=False),
    _time("created_at"),
    sa.UniqueConstraint("campaign_id", "key"),
    sa.CheckConstraint("slots_left >= 0", name="slots_left"),
    sa.Index("ix_tasks_progress", "campaign_id", "gold", "wanted", "done"),
    sa.Index(
        "ix_tasks_pool",
        "campaign_id",
        "gold",
        "place",
        # Read with it: tasks hold long texts, which are not to be passed over for these.
        "id",
        "priority",
        "slots_left",
        sqlite_where=sa.text("slots_left > 0"),
        postgresql_where=sa.text("slots_left > 0"),
    ),
)

annotators = sa.Table(
    "annotators",
    metadata,
    _id(),
    _text("name"),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    _text("password_hash", nullable=True),
    _time("created_at"),
    # What names that look alike share; of people alone, and of the first of those from before.
    _text("skeleton", nullable=True),
    sa.UniqueConstraint("kind", "name"),
    sa.Index("one_of_a_look", "skeleton", unique=True),
)

invites = sa.Table(
    "invites",
    metadata,
    _id(),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    _text("name"),
    _text("created_by"),
    _time("created_at"),
    _time("expires_at"),
    _time("used_at", nullable=True),
    _time("revoked_at", nullable=True),
    _to("annotators.id", "annotator_id", nullable=True),
)

sessions = sa.Table(
    "sessions",
    metadata,
    _id(),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    _to("annotators.id", "annotator_id", index=True),
    _time("created_at"),
    _time("expires_at"),
    _time("revoked_at", nullable=True),
)

# An invite let somebody in as a person who was there: told in that person's other sessions.
notices = sa.Table(
    "notices",
    metadata,
    _id(),
    _to("annotators.id", "annotator_id", index=True),
    _to("sessions.id", "session_id"),
    _time("at"),
    _text("client"),
    _time("dismissed_at", nullable=True),
)

assignments = sa.Table(
    "assignments",
    metadata,
    _id(),
    _to("tasks.id", "task_id", index=True),
    _to("campaigns.id", "campaign_id"),
    _to("annotators.id", "annotator_id"),
    sa.Column("purpose", sa.String(16), nullable=False),
    # open, done, skipped, or returned (given back, or its lease ran out); of an adjudication
    # adjudicated, or withdrawn (taken back, or another admin's took its place)
    sa.Column("state", sa.String(16), nullable=False),
    # Whether it takes (or, returned, took) one of the task's slots.
    sa.Column("takes_slot", sa.Boolean, nullable=False),
    _json("shown"),
    sa.Column("strategy", sa.String(16), nullable=False),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("guidelines_version", sa.Integer, nullable=False),
    _time("given_at"),
    _time("leased_until"),
    _time("ended_at", nullable=True),
    _text("skip_reason", nullable=True),
    # A task is given to an annotator once: as a task, as gold, and once more as a repeat.
    sa.UniqueConstraint("annotator_id", "task_id", "purpose"),
    sa.Index("ix_assignments_mine", "annotator_id", "campaign_id", "purpose", "state"),
    sa.Index("ix_assignments_done", "annotator_id", "campaign_id", "state", "ended_at"),
    sa.Index("ix_assignments_leases", "campaign_id", "state", "leased_until"),
    sa.Index(
        "one_open_assignment",
        "annotator_id",
        "campaign_id",
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    ),
    sa.Index(
        "one_adjudication",
        "task_id",
        unique=True,
        sqlite_where=sa.text("state = 'adjudicated'"),
        postgresql_where=sa.text("state = 'adjudicated'"),
    ),
)

labels = sa.Table(
    "labels",
    metadata,
    _id(),
    _to("assignments.id", "assignment_id"),
    sa.Column("revision", sa.Integer, nullable=False),
    _text("submission_key"),
    _json("ranks"),
    _json("ratings"),
    _json("flags"),
    sa.Column("strength", sa.Integer, nullable=True),
    _json("comment"),
    sa.Column("seconds", sa.Float, nullable=False),
    _time("created_at"),
    sa.UniqueConstraint("assignment_id", "revision"),
    sa.UniqueConstraint("assignment_id", "submission_key"),
    sa.CheckConstraint("revision >= 1", name="revision"),
)

drafts = sa.Table(
    "drafts",
    metadata,
    sa.Column("assignment_id", sa.String(32), sa.ForeignKey("assignments.id"), primary_key=True),
    _json("body"),
    _time("updated_at"),
)

# A live conversation; what it says stands in its turns.
conversations = sa.Table(
    "conversations",
    metadata,
    _id(),
    _to("campaigns.id", "campaign_id", index=True),
    _to("annotators.id", "annotator_id"),
    _time("started_at"),
    _time("ended_at", nullable=True),
    sa.Index(
        "one_open_conversation",
        "annotator_id",
        "campaign_id",
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    ),
)

# A message and what came of it: waiting for answers until `answered_at` is there. Then it has an
# assignment with the answers to rank; or `only`, where all were the same; or `failure`.
turns = sa.Table(
    "turns",
    metadata,
    _id(),
    _to("conversations.id", "conversation_id"),
    sa.Column("number", sa.Integer, nullable=False),
    _text("submission_key"),
    _text("text"),
    _time("asked_at"),
    _time("answered_at", nullable=True),
    _to("assignments.id", "assignment_id", nullable=True, unique=True),
    _text("only", nullable=True),
    _text("failure", nullable=True),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.UniqueConstraint("conversation_id", "number"),
    sa.UniqueConstraint("conversation_id", "submission_key"),
    sa.CheckConstraint("number >= 1", name="number"),
    sa.Index(
        "ix_turns_waiting",
        "asked_at",
        sqlite_where=sa.text("answered_at IS NULL"),
        postgresql_where=sa.text("answered_at IS NULL"),
    ),
)

# What is suggested to begin a conversation with.
openings = sa.Table(
    "openings",
    metadata,
    sa.Column("campaign_id", sa.String(32), sa.ForeignKey("campaigns.id"), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    _text("text"),
)

# A message that is not sent yet.
message_drafts = sa.Table(
    "message_drafts",
    metadata,
    sa.Column("annotator_id", sa.String(32), sa.ForeignKey("annotators.id"), primary_key=True),
    sa.Column("campaign_id", sa.String(32), sa.ForeignKey("campaigns.id"), primary_key=True),
    _text("text"),
    _time("updated_at"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    _time("at"),
    _text("who"),
    _text("action"),
    _text("subject"),
    _json("detail"),
    sa.Index("ix_audit_subject", "subject"),
)
