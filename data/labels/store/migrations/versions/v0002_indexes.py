"""Indexes that keep the choice of a task and an annotator's own figures cheap in long campaigns."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Read the pool of tasks from its index alone; find an annotator's last labels by one."""
    free = sa.text("slots_left > 0")
    op.drop_index("ix_tasks_pool", "tasks")
    op.create_index(
        "ix_tasks_pool",
        "tasks",
        ["campaign_id", "gold", "place", "id", "priority", "slots_left"],
        unique=False,
        sqlite_where=free,
        postgresql_where=free,
    )
    op.create_index(
        "ix_assignments_done",
        "assignments",
        ["annotator_id", "campaign_id", "state", "ended_at"],
        unique=False,
    )
