"""Review: titles of campaigns, guidelines that admins edit, one standing adjudication a task."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is missing; what is there stays."""
    op.add_column("campaigns", sa.Column("title", sa.Text(), nullable=True))
    op.add_column("guidelines", sa.Column("edited_by", sa.Text(), nullable=True))
    stands = sa.text("state = 'adjudicated'")
    op.create_index(
        "one_adjudication",
        "assignments",
        ["task_id"],
        unique=True,
        sqlite_where=stands,
        postgresql_where=stands,
    )
