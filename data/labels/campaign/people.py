"""Finding people by name, and telling apart whose names look alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from data.errors import UsageError
from data.labels.names import skeleton
from data.labels.records import Annotator, AnnotatorKind
from data.labels.store import rows, tables

_T = TypeVar("_T")


def again(deed: Callable[[], _T]) -> _T:
    """Do something, and once more where somebody else stored the same person just now."""
    try:
        return deed()
    except sa.exc.IntegrityError:
        return deed()


def row_of(connection: sa.Connection, name: str, kind: AnnotatorKind) -> Any:
    """Return the row of an annotator, None where there is none of this very name."""
    name, who = " ".join(name.split()), tables.annotators.c
    if not name.isprintable():  # nobody has such a name, and databases refuse some
        return None
    query = sa.select(*rows.ANNOTATOR).where(who.kind == kind, who.name == name)
    return connection.execute(query).one_or_none()


def person_row(connection: sa.Connection, typed: str) -> Any:
    """Return the row of a person whose name somebody typed, composed or not, else None."""
    row = row_of(connection, typed, "person")
    return row or row_of(connection, unicodedata.normalize("NFC", typed), "person")


def named(connection: sa.Connection, name: str, kind: AnnotatorKind) -> Annotator | None:
    """Return the annotator of this very name."""
    row = row_of(connection, name, kind)
    return None if row is None else rows.annotator(row)


def looks_taken(connection: sa.Connection, name: str) -> str | None:
    """Return the name of the account that looks like a name."""
    who = tables.annotators.c
    return connection.scalar(sa.select(who.name).where(who.skeleton == skeleton(name)))


def require_other_look(connection: sa.Connection, name: str, now: datetime) -> None:
    """Refuse a new name that looks like that of an account, or of somebody who is invited."""
    invites = tables.invites.c
    open_ones = sa.select(invites.name).where(
        invites.used_at.is_(None), invites.revoked_at.is_(None), invites.expires_at > now
    )
    invited = {*connection.scalars(open_ones)}
    alike = [] if name in invited else [o for o in invited if skeleton(o) == skeleton(name)]
    other = looks_taken(connection, name) or next(iter(alike), None)
    if other is not None and other != name:  # the very name may have come in just now
        raise UsageError(
            f"the name {name!r} looks like {other!r}, who is there or invited already: write it "
            "like that for the same person, or choose another"
        )


def count_of(connection: sa.Connection) -> int:
    """Return how many people may label."""
    who = tables.annotators.c
    asked = sa.select(sa.func.count()).where(
        who.kind == "person", who.role == "annotator", who.active.is_(True)
    )
    return int(connection.scalar(asked) or 0)
