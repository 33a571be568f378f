"""Accounts: one for names that look alike, sign-ins that are told, sessions that idle out."""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

from data.labels.names import skeleton
from data.labels.store.tables import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

IDLE = timedelta(hours=12)


def upgrade() -> None:
    """Keep accounts as they are, also those that look alike: the first has the look."""
    op.add_column("annotators", sa.Column("skeleton", sa.Text(), nullable=True))
    connection = op.get_bind()
    who = sa.table(
        "annotators",
        *(sa.column(name) for name in ("id", "name", "kind", "created_at", "skeleton")),
    )
    people = sa.select(who.c.id, who.c.name).where(who.c.kind == "person")
    taken: set[str] = set()
    for row in connection.execute(people.order_by(who.c.created_at, who.c.id)).all():
        if (look := skeleton(row.name)) not in taken:
            taken.add(look)
            connection.execute(who.update().where(who.c.id == row.id).values(skeleton=look))
    op.create_index("one_of_a_look", "annotators", ["skeleton"], unique=True)
    op.create_table(
        "notices",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("annotator_id", sa.String(length=32), nullable=False),
        sa.Column("session_id", sa.String(length=32), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("dismissed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name=op.f("fk_notices_annotator_id")
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_notices_session_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notices")),
    )
    op.create_index(op.f("ix_notices_annotator_id"), "notices", ["annotator_id"], unique=False)
    # A session from before ends when nobody comes back for as long as from now on.
    sessions = sa.table("sessions", sa.column("expires_at", UtcTime))
    latest = datetime.now(UTC) + IDLE
    connection.execute(
        sessions.update().where(sessions.c.expires_at > latest).values(expires_at=latest)
    )
