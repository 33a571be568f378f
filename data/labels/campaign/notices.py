"""What a person is told of: that an invite let somebody in as them.

It is told in each of their sessions but the one that came by the invite, until it is dismissed.
"""

from __future__ import annotations

import sqlalchemy as sa

from data.labels.records import Notice, Session
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database, new_id

_notices = tables.notices.c


def unseen_notices() -> sa.ScalarSelect[int]:
    """Return how many there are to tell, inside a query of sessions."""
    return (
        sa.select(sa.func.count(_notices.id))
        .where(
            _notices.annotator_id == tables.sessions.c.annotator_id,
            _notices.session_id != tables.sessions.c.id,
            _notices.dismissed_at.is_(None),
        )
        .correlate(tables.sessions)
        .scalar_subquery()
    )


def add_notice(
    connection: sa.Connection, database: Database, annotator_id: str, session_id: str, client: str
) -> None:
    """Note that a session came by an invite as somebody who was there."""
    connection.execute(
        tables.notices.insert().values(
            id=new_id(),
            annotator_id=annotator_id,
            session_id=session_id,
            at=database.now(),
            client=client,
        )
    )


def notices(database: Database, session: Session) -> list[Notice]:
    """Return what a session is to be told of, oldest first."""
    query = (
        sa.select(_notices.id, _notices.at, _notices.client)
        .where(*_told_in(session))
        .order_by(_notices.at)
    )
    with database.read() as connection:
        return [Notice(**row._mapping) for row in connection.execute(query).all()]


def dismiss(database: Database, notice_id: str, session: Session) -> None:
    """Tell no more of what a session was told of."""
    with database.write() as connection:
        changed = connection.execute(
            tables.notices.update()
            .where(_notices.id == notice_id, *_told_in(session))
            .values(dismissed_at=database.now())
        )
        if changed.rowcount == 1:
            me = session.annotator.id
            Audit(database).write(connection, me, "dismiss notice", notice_id)


def _told_in(session: Session) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        _notices.annotator_id == session.annotator.id,
        _notices.session_id != session.id,
        _notices.dismissed_at.is_(None),
    )
