"""Who labels, and how they get in: invites, sessions and, where wanted, passwords.

Tokens are 32 random bytes; only their SHA-256 is stored, so that a stolen database opens no
session. A session's CSRF token is derived from its token and needs no storing.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from data.errors import LabelError, NotYoursError, UsageError
from data.labels.records import Annotator, AnnotatorKind, Invite, Role, Session
from data.labels.store import rows, tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database, kept_id, new_id

SESSION_HOURS = 7 * 24.0
"""How long a browser stays signed in."""
PASSWORD_LENGTH = range(12, 1025)
"""Characters; the upper end keeps hashing cheap."""

# Every request asks for its session: the statement is built once, as in `next_task`.
_SESSION = (
    sa.select(tables.sessions, *rows.ANNOTATOR)
    .join(tables.annotators, tables.sessions.c.annotator_id == tables.annotators.c.id)
    .where(
        tables.sessions.c.token_sha256 == sa.bindparam("token"),
        tables.sessions.c.revoked_at.is_(None),
        tables.sessions.c.expires_at > sa.bindparam("now", type_=tables.UtcTime),
        tables.annotators.c.active.is_(True),
    )
)


class Accounts:
    """The annotators of one database and their ways in."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.audit = Audit(database)

    def invite(self, role: Role, name: str, hours: float, by: str) -> tuple[Invite, str]:
        """Return an invite and its token, which is told this once.

        An invite for a name that is there lets that same person in again.

        Args:
            role: what the person may do.
            name: how the person is called in exports and statistics.
            hours: after which the invite is void.
            by: who invites, for the audit log.
        """
        name = _name(name)
        if not 0 < hours <= 24 * 365:
            raise UsageError(f"an invite is good for more than 0 hours and at most a year: {hours}")
        token, now = secrets.token_urlsafe(32), self.database.now()
        invite = Invite(new_id(), role, name, by, now, now + timedelta(hours=hours))
        with self.database.write() as connection:
            known = _named(connection, name, "person")
            if known is not None and known.role != role:
                raise UsageError(f"{name!r} is an {known.role}, so invite them as that: {role}")
            if known is not None and not known.active:
                raise UsageError(f"{name!r} was deactivated: invite them by another name")
            connection.execute(
                tables.invites.insert().values(
                    id=invite.id,
                    token_sha256=_sha256(token),
                    role=role,
                    name=name,
                    created_by=by,
                    created_at=now,
                    expires_at=invite.expires_at,
                )
            )
            self.audit.write(connection, by, "invite", invite.id, name=name, role=role)
        return invite, token

    def accept(self, token: str) -> tuple[Annotator, str, str]:
        """Use an invite up, and return who it is with a session token and its CSRF token.

        Raises:
            NotYoursError: unknown, used, expired or revoked; which of them is not told.
        """
        invites, now = tables.invites.c, self.database.now()
        with self.database.write() as connection:
            row = connection.execute(
                tables.invites.update()
                .where(
                    invites.token_sha256 == _sha256(token),
                    invites.used_at.is_(None),
                    invites.revoked_at.is_(None),
                    invites.expires_at > now,
                )
                .values(used_at=now)
                .returning(invites.id, invites.name, invites.role)
            ).one_or_none()
            if row is None:
                raise NotYoursError("this invite is not valid any more: ask for a new one")
            annotator = _named(connection, row.name, "person")
            if annotator is None:
                annotator = self._insert(connection, row.name, "person", row.role)
            if not annotator.active or annotator.role != row.role:
                raise NotYoursError("this invite is not valid any more: ask for a new one")
            connection.execute(
                tables.invites.update()
                .where(invites.id == row.id)
                .values(annotator_id=annotator.id)
            )
            self.audit.write(connection, annotator.id, "accept", row.id)
            return annotator, *self._sign_in(connection, annotator)

    def invites(self) -> list[Invite]:
        """Return all invites, newest first."""
        query = sa.select(tables.invites).order_by(tables.invites.c.created_at.desc())
        with self.database.read() as connection:
            invites = connection.execute(query).all()
        hidden = ("token_sha256", "annotator_id")
        return [
            Invite(**{k: v for k, v in row._mapping.items() if k not in hidden}) for row in invites
        ]

    def revoke_invite(self, invite_id: str, *, by: str) -> None:
        """Make an invite void."""
        self._stamp(tables.invites, tables.invites.c.id == invite_id, by, "revoke invite")

    def session(self, token: str) -> Session | None:
        """Return the session of a token, unless it is over or its annotator deactivated."""
        where = {"token": _sha256(token), "now": self.database.now()}
        with self.database.look() as connection:
            row = connection.execute(_SESSION, where).one_or_none()
        if row is None:
            return None
        return Session(row.id, rows.annotator(row), _csrf(token), row.created_at, row.expires_at)

    def revoke(self, session_id: str, *, by: str = "") -> None:
        """End a session."""
        self._stamp(tables.sessions, tables.sessions.c.id == session_id, by, "sign out")

    def revoke_all(self, annotator_id: str, *, by: str = "") -> None:
        """End every session of an annotator."""
        self._stamp(tables.sessions, tables.sessions.c.annotator_id == annotator_id, by, "sign out")

    def deactivate(self, annotator_id: str, *, by: str = "system") -> None:
        """Let an annotator in no more and end every session; their labels stay."""
        with self.database.write() as connection:
            connection.execute(
                tables.annotators.update()
                .where(tables.annotators.c.id == annotator_id)
                .values(active=False)
            )
            self.audit.write(connection, by, "deactivate", annotator_id)
        self.revoke_all(annotator_id, by=by)

    def add(
        self, name: str, kind: AnnotatorKind, *, role: Role = "annotator", wanted_id: str = ""
    ) -> Annotator:
        """Store an annotator, or return the one of this kind and name that is there.

        Args:
            name: of the annotator.
            kind: of the annotator.
            role: of a person.
            wanted_id: that of another database, taken where it is free.
        """
        name = _name(name)
        annotator = self._find(name, kind)
        if annotator is not None:
            return annotator
        try:
            with self.database.write() as connection:
                return self._insert(connection, name, kind, role, wanted_id)
        except sa.exc.IntegrityError:
            # Somebody else added them just now.
            annotator = self._find(name, kind)
            assert annotator is not None
            return annotator

    def _find(self, name: str, kind: AnnotatorKind) -> Annotator | None:
        with self.database.read() as connection:
            return _named(connection, name, kind)

    def get(self, annotator_id: str) -> Annotator | None:
        """Return the annotator of this id."""
        query = sa.select(*rows.ANNOTATOR).where(tables.annotators.c.id == annotator_id)
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else rows.annotator(row)

    def list(self) -> list[Annotator]:
        """Return everybody, by name."""
        query = sa.select(*rows.ANNOTATOR).order_by(
            tables.annotators.c.name, tables.annotators.c.kind
        )
        with self.database.read() as connection:
            return [rows.annotator(row) for row in connection.execute(query).all()]

    def set_password(self, annotator_id: str, password: str) -> None:
        """Let a person sign in with a password, kept as an Argon2id hash."""
        if len(password) not in PASSWORD_LENGTH:
            raise UsageError(
                f"a password has {PASSWORD_LENGTH.start} to {PASSWORD_LENGTH.stop - 1} characters, "
                f"this one {len(password)}"
            )
        hashed = _hasher().hash(password)
        with self.database.write() as connection:
            changed = connection.execute(
                tables.annotators.update()
                .where(tables.annotators.c.id == annotator_id)
                .values(password_hash=hashed)
            )
            if changed.rowcount != 1:
                raise NotYoursError(f"there is no annotator {annotator_id}")
            self.audit.write(connection, annotator_id, "set password", annotator_id)

    def login(self, name: str, password: str) -> tuple[Annotator, str, str]:
        """Return who it is with a session token and its CSRF token.

        Raises:
            NotYoursError: the name or the password is wrong; which of the two is not told, and
                takes as long to find out either way.
        """
        with self.database.read() as connection:
            row = _row(connection, name, "person")
        stored = None if row is None else row.p_password_hash
        right = len(password) in PASSWORD_LENGTH and _verify(stored, password)
        with self.database.write() as connection:
            if row is None or stored is None or not right or not row.p_active:
                self.audit.write(connection, "", "failed sign in", "" if row is None else row.p_id)
                annotator = None
            else:
                annotator = rows.annotator(row)
                self.audit.write(connection, annotator.id, "sign in", annotator.id)
                signed_in = self._sign_in(connection, annotator)
        if annotator is None:
            raise NotYoursError("the name or the password is wrong")
        return annotator, *signed_in

    def _insert(
        self,
        connection: sa.Connection,
        name: str,
        kind: AnnotatorKind,
        role: Role,
        wanted_id: str = "",
    ) -> Annotator:
        annotator = Annotator(kept_id(connection, tables.annotators, wanted_id), name, kind, role)
        connection.execute(
            tables.annotators.insert().values(
                id=annotator.id,
                name=name,
                kind=kind,
                role=role,
                active=True,
                created_at=self.database.now(),
            )
        )
        self.audit.write(connection, "system", "add annotator", annotator.id, name=name, kind=kind)
        return annotator

    def _sign_in(self, connection: sa.Connection, annotator: Annotator) -> tuple[str, str]:
        token, now = secrets.token_urlsafe(32), self.database.now()
        connection.execute(
            tables.sessions.insert().values(
                id=new_id(),
                token_sha256=_sha256(token),
                annotator_id=annotator.id,
                created_at=now,
                expires_at=now + timedelta(hours=SESSION_HOURS),
            )
        )
        return token, _csrf(token)

    def _stamp(
        self, table: sa.Table, condition: sa.ColumnElement[bool], by: str, action: str
    ) -> None:
        with self.database.write() as connection:
            changed = connection.execute(
                table.update()
                .where(condition, table.c.revoked_at.is_(None))
                .values(revoked_at=self.database.now())
                .returning(table.c.id)
            ).all()
            for row in changed:
                self.audit.write(connection, by, action, row.id)


def _row(connection: sa.Connection, name: str, kind: AnnotatorKind) -> Any:
    who = tables.annotators.c
    query = sa.select(*rows.ANNOTATOR).where(who.kind == kind, who.name == name)
    return connection.execute(query).one_or_none()


def _named(connection: sa.Connection, name: str, kind: AnnotatorKind) -> Annotator | None:
    row = _row(connection, name, kind)
    return None if row is None else rows.annotator(row)


def _name(name: str) -> str:
    name = " ".join(name.split())
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise LabelError(f"an annotator's name has 1 to 100 printable characters: {name[:100]!r}")
    return name


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _csrf(token: str) -> str:
    return hashlib.sha256(b"csrf " + token.encode("utf-8", "surrogatepass")).hexdigest()


def _hasher() -> Any:
    from argon2 import PasswordHasher

    return PasswordHasher()


def _verify(stored: str | None, password: str) -> bool:
    from argon2.exceptions import VerificationError

    if stored is None:
        _hasher().hash(password)
        return False
    try:
        return bool(_hasher().verify(stored, password))
    except VerificationError:
        return False
