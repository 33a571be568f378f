"""Who did what and when; entries are only ever added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from data.labels.store import tables
from data.labels.store.database import Database


@dataclass(frozen=True)
class Entry:
    """One thing that was done; `who` is an annotator's id or what acted, as `command line`."""

    number: int
    at: datetime
    who: str
    action: str
    subject: str
    detail: dict[str, Any]


class Audit:
    """The audit log of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def write(
        self, connection: sa.Connection, who: str, action: str, subject: str, **detail: Any
    ) -> None:
        """Add an entry in the caller's transaction: it is there if and only if the deed is."""
        connection.execute(
            tables.audit.insert().values(
                at=self.database.now(), who=who, action=action, subject=subject, detail=detail
            )
        )

    def entries(self, *, subject: str | None = None, limit: int = 200) -> Iterator[Entry]:
        """Yield the last entries, newest first."""
        query = sa.select(tables.audit).order_by(tables.audit.c.number.desc()).limit(limit)
        if subject is not None:
            query = query.where(tables.audit.c.subject == subject)
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield Entry(**row._mapping)
