"""Who labels, and how they get in: invites, sessions and, where wanted, passwords.

Tokens are 32 random bytes; only their SHA-256 is stored, so that a stolen database opens no
session. A session's CSRF token is derived from its token and needs no storing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa

from data.errors import LabelConflictError, NotYoursError, UsageError
from data.labels.campaign.notices import add_notice, unseen_notices
from data.labels.campaign.passwords import PASSWORD_LENGTH, hashed, weakness
from data.labels.campaign.passwords import is_right as _verify
from data.labels.campaign.people import again, looks_taken, named, person_row, require_other_look
from data.labels.names import LONGEST, clean_name, plain_name, skeleton
from data.labels.records import Annotator, AnnotatorKind, Invite, Role, Session
from data.labels.store import rows, tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database, kept_id, new_id

SESSION_HOURS = 7 * 24.0
"""How long a browser stays signed in."""
IDLE_HOURS = 12.0
"""How long a browser stays signed in that does not come; NIST SP 800-63B, 4.2.3 has 30 minutes
for what is at risk, which labels are not."""
_NOTED = timedelta(minutes=5)
"""How often it is written down that a browser came."""
_VOID = "this invite is not valid any more: ask for a new one"
_CLIENT = 100
"""Characters kept of an address that a proxy tells."""

# Every request asks for its session: the statement is built once, as in `next_task`.
_SESSION = (
    sa.select(
        tables.sessions,
        *rows.ANNOTATOR,
        unseen_notices().label("unseen"),
    )
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

    def __init__(self, database: Database, *, idle_hours: float = IDLE_HOURS) -> None:
        if not idle_hours > 0:
            raise UsageError(f"people are signed out after more than 0 idle hours: {idle_hours}")
        self.database = database
        self.idle = timedelta(hours=min(idle_hours, SESSION_HOURS))
        self.audit = Audit(database)

    def invite(self, role: Role, name: str, hours: float, by: str) -> tuple[Invite, str]:
        """Return an invite and its token, which is told this once; see `invite_all`."""
        return self.invite_all(role, [name], hours, by)[0]

    def invite_all(
        self, role: Role, names: Sequence[str], hours: float, by: str
    ) -> list[tuple[Invite, str]]:
        """Return an invite and its token for each name, or make none.

        An invite for a name that is there lets that same person in again. It is void after `hours`;
        `by` is who invites, for the audit log.

        Raises:
            LabelError: what can't be a name.
            UsageError: a name looks like another, or is that of somebody with another role.
        """
        require_hours(hours)
        with self.database.write() as connection:
            return [self._invite(connection, role, name, hours, by) for name in names]

    def _invite(
        self, connection: sa.Connection, role: Role, name: str, hours: float, by: str
    ) -> tuple[Invite, str]:
        row = person_row(connection, name[: 10 * LONGEST])
        known = None if row is None else rows.annotator(row)
        if known is None:
            name = clean_name(name)
            require_other_look(connection, name, self.database.now())
        elif known.role != role:
            raise UsageError(f"{known.name!r} is an {known.role}, so invite them as that: {role}")
        elif not known.active:
            raise UsageError(f"{known.name!r} was deactivated: invite them by another name")
        else:
            name = known.name
        token, now = secrets.token_urlsafe(32), self.database.now()
        invite = Invite(new_id(), role, name, by, now, now + timedelta(hours=hours))
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

    def accept(self, token: str, client: str = "") -> tuple[Annotator, str, str]:
        """Use an invite up, and return who it is with a session token and its CSRF token.

        Who was there already is told so in their other sessions.

        Args:
            token: of the invite.
            client: address of who uses it.

        Raises:
            NotYoursError: unknown, used, expired or revoked; which of them is not told.
        """
        client = client[:_CLIENT]
        try:
            return again(lambda: self._accept(token, client))
        except NotYoursError:
            invites = tables.invites.c
            with self.database.write() as connection:
                known = connection.scalar(
                    sa.select(invites.id).where(invites.token_sha256 == _sha256(token))
                )
                self.audit.write(connection, "", "refused invite", known or "", client=client)
            raise

    def _accept(self, token: str, client: str) -> tuple[Annotator, str, str]:
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
                raise NotYoursError(_VOID)
            # In this order: whoever has the look by now is also found by name, if it is theirs.
            look = looks_taken(connection, row.name)
            known = named(connection, row.name, "person")
            if known is None and look is not None:
                raise NotYoursError(_VOID)
            annotator = known or self._insert(connection, row.name, "person", row.role)
            if not annotator.active or annotator.role != row.role:
                raise NotYoursError(_VOID)
            connection.execute(
                tables.invites.update()
                .where(invites.id == row.id)
                .values(annotator_id=annotator.id)
            )
            self.audit.write(connection, annotator.id, "accept", row.id, client=client)
            session, *tokens = self._sign_in(connection, annotator)
            if known is not None:
                add_notice(connection, self.database, annotator.id, session, client)
            return annotator, tokens[0], tokens[1]

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
        with self.database.write() as connection:
            self._stamp(connection, tables.invites, by, tables.invites.c.id == invite_id)

    def session(self, token: str) -> Session | None:
        """Return the session of a token, unless it is over or its annotator deactivated."""
        now = self.database.now()
        with self.database.look() as connection:
            row = connection.execute(_SESSION, {"token": _sha256(token), "now": now}).one_or_none()
        if row is None:
            return None
        latest = min(row.created_at + timedelta(hours=SESSION_HOURS), now + self.idle)
        if latest - row.expires_at > _NOTED:
            with self.database.write(durable=False) as connection:
                connection.execute(
                    tables.sessions.update()
                    .where(tables.sessions.c.id == row.id)
                    .values(expires_at=latest)
                )
        return Session(
            row.id, rows.annotator(row), _csrf(token), row.created_at, row.expires_at, row.unseen
        )

    def revoke(self, session_id: str, *, by: str = "") -> None:
        """End a session."""
        with self.database.write() as connection:
            self._stamp(connection, tables.sessions, by, tables.sessions.c.id == session_id)

    def revoke_all(self, annotator_id: str, *, by: str = "") -> None:
        """End every session of an annotator, and make the invites void that nobody has used."""
        with self.database.write() as connection:
            self._shut_out(connection, annotator_id, by)

    def deactivate(self, annotator_id: str, *, by: str = "system") -> None:
        """Let an annotator in no more and end every session; their labels stay."""
        with self.database.write() as connection:
            changed = connection.execute(
                tables.annotators.update()
                .where(tables.annotators.c.id == annotator_id)
                .values(active=False)
            )
            if changed.rowcount == 1:
                self.audit.write(connection, by, "deactivate", annotator_id)
                self._shut_out(connection, annotator_id, by)

    def _shut_out(self, connection: sa.Connection, annotator_id: str, by: str) -> None:
        self._stamp(connection, tables.sessions, by, tables.sessions.c.annotator_id == annotator_id)
        name = sa.select(tables.annotators.c.name).where(
            tables.annotators.c.id == annotator_id, tables.annotators.c.kind == "person"
        )
        unused = (
            tables.invites.c.name == name.scalar_subquery(),
            tables.invites.c.used_at.is_(None),
        )
        self._stamp(connection, tables.invites, by, *unused)

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
        name = plain_name(name)
        with self.database.read() as connection:
            annotator = named(connection, name, kind)
        if annotator is not None:
            return annotator

        def added() -> Annotator:
            with self.database.write() as connection:
                there = named(connection, name, kind)
                return there or self._insert(connection, name, kind, role, wanted_id)

        return again(added)

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

    def with_password(self) -> set[str]:
        """Return the ids of those who can sign in with a password."""
        who = tables.annotators.c
        with self.database.read() as connection:
            return {*connection.scalars(sa.select(who.id).where(who.password_hash.is_not(None)))}

    def set_password(
        self, annotator_id: str, password: str, *, old: str = "", keep: str = ""
    ) -> None:
        """Let a person sign in with a password, and end their sessions.

        Args:
            annotator_id: whose it is.
            password: kept as an Argon2id hash.
            old: the one there is; not asked before the first.
            keep: id of the session that goes on.

        Raises:
            NotYoursError: there is no such annotator.
            LabelConflictError: the password was changed meanwhile.
            UsageError: the old one is wrong, or the new one easily guessed.
        """
        who = tables.annotators.c
        with self.database.read() as connection:
            row = connection.execute(
                sa.select(who.name, who.password_hash).where(who.id == annotator_id)
            ).one_or_none()
        if row is None:
            raise NotYoursError(f"there is no annotator {annotator_id}")
        if row.password_hash is not None and not _verify(row.password_hash, old):
            with self.database.write() as connection:
                self.audit.write(connection, annotator_id, "failed password change", annotator_id)
            raise UsageError("the old password is wrong, so it was not changed")
        if len(password) not in PASSWORD_LENGTH:
            raise UsageError(
                f"a password has {PASSWORD_LENGTH.start} to {PASSWORD_LENGTH.stop - 1} characters, "
                f"this one {len(password)}"
            )
        if why := weakness(password, row.name):
            raise UsageError(f"this password is easily guessed, since {why}: take another")
        if row.password_hash is not None and password == old:
            raise UsageError("the new password is the old one: take another")
        self._store_password(annotator_id, hashed(password), was=row.password_hash, keep=keep)

    def _store_password(
        self, annotator_id: str, password_hash: str, *, was: str | None, keep: str
    ) -> None:
        who, sessions = tables.annotators.c, tables.sessions.c
        with self.database.write() as connection:
            changed = connection.execute(
                tables.annotators.update()
                .where(who.id == annotator_id, who.password_hash.is_not_distinct_from(was))
                .values(password_hash=password_hash)
            )
            if changed.rowcount != 1:
                raise LabelConflictError("the password was changed meanwhile: try again")
            self.audit.write(connection, annotator_id, "set password", annotator_id)
            others = (sessions.annotator_id == annotator_id, sessions.id != keep)
            self._stamp(connection, tables.sessions, annotator_id, *others)

    def remove_password(self, annotator_id: str, *, by: str) -> None:
        """Let a person sign in with a password no more until they set one, and sign them out."""
        who = tables.annotators.c
        with self.database.write() as connection:
            changed = connection.execute(
                tables.annotators.update()
                .where(who.id == annotator_id, who.password_hash.is_not(None))
                .values(password_hash=None)
            )
            if changed.rowcount == 1:
                self.audit.write(connection, by, "remove password", annotator_id)
                self._shut_out(connection, annotator_id, by)

    def login(self, name: str, password: str, client: str = "") -> tuple[Annotator, str, str]:
        """Return who it is with a session token and its CSRF token.

        Args:
            name: of the person.
            password: of theirs.
            client: address of who signs in.

        Raises:
            NotYoursError: the name or the password is wrong; which of the two is not told, and
                takes as long to find out either way.
        """
        client = client[:_CLIENT]
        with self.database.read() as connection:
            row = person_row(connection, name)
        stored = None if row is None else row.p_password_hash
        right = _verify(stored, password)
        who = tables.annotators.c
        with self.database.write() as connection:
            # A password that was changed while this one was looked at is not right any more.
            still = row is not None and connection.scalar(
                sa.select(who.password_hash).where(who.id == row.p_id, who.active).with_for_update()
            )
            if row is None or not right or not still or still != stored:
                known = "" if row is None else row.p_id
                self.audit.write(connection, "", "failed sign in", known, client=client)
                signed_in = None
            else:
                self.audit.write(connection, row.p_id, "sign in", row.p_id, client=client)
                signed_in = self._sign_in(connection, rows.annotator(row))
        if signed_in is None:
            raise NotYoursError("the name or the password is wrong")
        return rows.annotator(row), signed_in[1], signed_in[2]

    def _insert(
        self,
        connection: sa.Connection,
        name: str,
        kind: AnnotatorKind,
        role: Role,
        wanted_id: str = "",
    ) -> Annotator:
        annotator = Annotator(kept_id(connection, tables.annotators, wanted_id), name, kind, role)
        # Others may look alike: they are no accounts, or come from another database.
        owns_look = kind == "person" and not looks_taken(connection, name)
        connection.execute(
            tables.annotators.insert().values(
                id=annotator.id,
                name=name,
                kind=kind,
                role=role,
                active=True,
                created_at=self.database.now(),
                skeleton=skeleton(name) if owns_look else None,
            )
        )
        self.audit.write(connection, "system", "add annotator", annotator.id, name=name, kind=kind)
        return annotator

    def _sign_in(self, connection: sa.Connection, annotator: Annotator) -> tuple[str, str, str]:
        """Open a session, never one that the browser had; return its id and its two tokens."""
        session, token, now = new_id(), secrets.token_urlsafe(32), self.database.now()
        connection.execute(
            tables.sessions.insert().values(
                id=session,
                token_sha256=_sha256(token),
                annotator_id=annotator.id,
                created_at=now,
                expires_at=now + self.idle,
            )
        )
        return session, token, _csrf(token)

    def _stamp(
        self,
        connection: sa.Connection,
        table: sa.Table,
        by: str,
        *conditions: sa.ColumnElement[bool],
    ) -> None:
        """Revoke sessions or invites."""
        changed = connection.execute(
            table.update()
            .where(*conditions, table.c.revoked_at.is_(None))
            .values(revoked_at=self.database.now())
            .returning(table.c.id)
        ).all()
        for row in changed:
            action = "revoke invite" if table is tables.invites else "sign out"
            self.audit.write(connection, by, action, row.id)


def require_hours(hours: float) -> None:
    """Refuse, by a `UsageError`, a time that no invite is good for."""
    if not 0 < hours <= 24 * 365:
        raise UsageError(f"an invite is good for more than 0 hours and at most a year: {hours}")


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _csrf(token: str) -> str:
    return hashlib.sha256(b"csrf " + token.encode("utf-8", "surrogatepass")).hexdigest()
