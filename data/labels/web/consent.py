"""Who accepted which version of a campaign's guidelines; kept in the audit log."""

from __future__ import annotations

import sqlalchemy as sa

from data.labels.records import Campaign
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database

_ACTION = "accept guidelines"

_ACCEPTED = sa.select(tables.audit.c.detail).where(
    tables.audit.c.subject == sa.bindparam("campaign"),
    tables.audit.c.who == sa.bindparam("annotator"),
    tables.audit.c.action == _ACTION,
)


def accepted_version(database: Database, annotator_id: str, campaign_id: str) -> int:
    """Return the newest version that the annotator accepted, 0 if none."""
    where = {"campaign": campaign_id, "annotator": annotator_id}
    with database.look() as connection:
        accepted = connection.execute(_ACCEPTED, where).scalars().all()
    return max((int(detail["version"]) for detail in accepted), default=0)


def accept(database: Database, annotator_id: str, campaign: Campaign) -> None:
    """Note that the annotator accepts the guidelines as they are now."""
    if accepted_version(database, annotator_id, campaign.id) >= campaign.guidelines_version:
        return
    with database.write() as connection:
        Audit(database).write(
            connection, annotator_id, _ACTION, campaign.id, version=campaign.guidelines_version
        )
