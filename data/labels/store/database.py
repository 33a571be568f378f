"""The database that labels are kept in: SQLite by default, PostgreSQL by URL.

SQLite runs in WAL mode with `synchronous=FULL`, so that what was acknowledged survives a killed
process and a power cut. A transaction that will write says so at once (`BEGIN IMMEDIATE`): one that
begins as a reader and turns into a writer fails with "database is locked" as soon as somebody else
wrote meanwhile, and no time-out helps against that. Writers of one process queue up at a lock of
ours, since SQLite's own waiting is a sleep of up to 100 ms that serves nobody in order.

Nothing waits without bound: not for a lock, a connection or a statement. What the database refuses
for now is a `StoreDownError`, made where every block of work passes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import event

from data.errors import ArtifactError, RlhfError, StoreDownError, UsageError, in_words
from data.extras import require_packages
from data.labels.store.private import close_to_others, make_file, make_folder
from data.labels.store.tables import metadata
from data.storage import storage_errors

CONNECTIONS = 16
"""Connections kept open; opening one costs more than a whole request."""
_MORE_CONNECTIONS = 64
_BUSY_SECONDS = 4
"""For a lock that another process holds, for a connection, and for the server's first answer."""
_STATEMENT_SECONDS = 60
_IDLE_SECONDS = 5.0
"""After which a PostgreSQL connection is tried before it is used: the server may be a new one.
Trying each time would be a fourth of all that is said to the server."""
_MIGRATIONS_LOCK = 7_236_411
"""An arbitrary number that names our migrations among PostgreSQL's advisory locks."""


_WAYS_OUT = {
    "locked": "end what holds it, or try again in a moment",
    "full": "make room on its disk and try again",
    "read-?only": "let it be written again, or name another by --database",
    "not a database|malformed": "name the right file by --database, or bring back a copy",
    "permission denied": "give its role the rights to it (GRANT)",
    "no such (table|column)|does not exist": "bring back a copy",
}
_TAKEN_AWAY = ("42501", "42P01", "42703", "3F000")
"""PostgreSQL's codes of a right, table, column or schema that was there when it was opened."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = re.compile(r"[\w-]{22}", re.ASCII)


def utc_now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return 22 random characters that may stand in an address; 128 bits, so never guessed."""
    return secrets.token_urlsafe(16)


def free_ids(connection: sa.Connection, table: sa.Table, wanted: Iterable[str]) -> set[str]:
    """Return which ids, given by another database, are of our form and not taken in a table."""
    fit = {one for one in wanted if _ID.fullmatch(one)}
    if not fit:
        return fit
    return fit - {*connection.scalars(sa.select(table.c.id).where(table.c.id.in_(fit)))}


def kept_id(connection: sa.Connection, table: sa.Table, wanted: str) -> str:
    """Return the id that another database gave where it is free here, else a new one."""
    return wanted if free_ids(connection, table, [wanted]) else new_id()


class Database:
    """An open database; one a process, shared by its threads.

    Attributes:
        url: where it is, without a password.
        clock: what `now()` asks; tests put their own here.
        notes: what to tell of how it was opened.
    """

    def __init__(self, engine: sa.Engine, clock: Callable[[], datetime] = utc_now) -> None:
        self.engine = engine
        self.clock = clock
        self.url = engine.url.render_as_string(hide_password=True)
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.notes: list[str] = []
        self._file: tuple[Path, os.stat_result] | None = None
        self._writer = threading.Lock()

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        return self.clock()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a connection whose reads all see the same state on SQLite."""
        with self._told(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def look(self) -> Iterator[sa.Connection]:
        """Give a connection each of whose reads stands for itself, in no transaction.

        Where there is one read, or where what was read is checked again before it counts: it
        costs a third of `read()`, on PostgreSQL in round trips and else in work.
        """
        alone: dict[str, Any] = (
            {"alone": True} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        )
        with self._told(), self.engine.connect() as connection:
            yield connection.execution_options(**alone)

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """Give a connection that commits at the end, or undoes everything on an error.

        Args:
            durable: wait until the disk has it. Without, a killed process still loses nothing,
                but a power cut may undo the last moment; whatever is durable later makes it so.
        """
        if not self.is_sqlite:
            with self._told(), self.engine.begin() as connection:
                if not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield connection
            return
        with self._told(), self._turn(), self.engine.connect() as connection:
            connection = connection.execution_options(immediate=True)
            # Straight to the driver: it can't be changed inside a transaction.
            raw: Any = connection.connection.driver_connection
            if not durable:
                raw.execute("PRAGMA synchronous = NORMAL")
            try:
                with connection.begin():
                    yield connection
            finally:
                if not durable:
                    raw.rollback()  # a commit that failed leaves its transaction open
                    raw.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock of this process's writers."""
        if not self._writer.acquire(timeout=_BUSY_SECONDS):
            raise self._down("database is locked")
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell a database that can't be used now from one that refuses what it was given."""
        try:
            yield
        except sa.exc.TimeoutError as error:
            raise self._down("all connections are taken") from error
        # Internal: PostgreSQL's of a server that only reads now, such as a standby.
        except (
            sa.exc.OperationalError,
            sa.exc.InternalError,
            self.engine.dialect.loaded_dbapi.OperationalError,
        ) as error:
            raise self._down(str(getattr(error, "orig", error))) from error
        except sa.exc.DatabaseError as error:
            # As DatabaseError itself SQLite tells of damaged files.
            taken = getattr(error.orig, "sqlstate", None) in _TAKEN_AWAY
            if type(error) is not sa.exc.DatabaseError and not taken:
                raise
            raise self._down(str(error.orig)) from error

    def _down(self, why: str) -> StoreDownError:
        reason = (why.strip().splitlines() or ["unknown"])[0].rstrip(".")
        known = (way for words, way in _WAYS_OUT.items() if re.search(words, reason))
        way_out = next(known, "mend that and try again")
        return StoreDownError(
            f"the label database {self.url} can't be used now: {reason}; {way_out}"
        )

    def stand_for(self, path: Path) -> None:
        """Remember the SQLite file that was opened."""
        self._file = path, path.stat()

    def require_there(self) -> None:
        """Refuse an SQLite file that was deleted or replaced: nobody else writes into it any more.

        Raises:
            StoreDownError: names it.
        """
        if self._file is None:
            return
        path, facts = self._file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(facts, path.stat()):
                return
        raise StoreDownError(
            f"the label database {path} was deleted or replaced while it was waited for labels; "
            "put it back and run again, or run again to ask for all of them anew"
        )

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_database(url: str, *, create: bool = True, home: Path | None = None) -> Database:
    """Open a database and bring its tables up to date.

    An SQLite file is made its owner's alone, and so is its folder if that is `home` or new.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://user:password@host/name`; a plain path is
            an SQLite file.
        create: whether a missing SQLite file is made.
        home: the run's own folder for labels.

    Raises:
        UsageError: another kind of address, or no such file.
        ArtifactError: the tables were made by a newer version of this program.
        StoreDownError: it can't be had now.
    """
    parsed = _parse(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            engine = _open_sqlite(parsed, create=create)
        else:
            engine = _open_postgresql(parsed)
    except RlhfError:
        raise
    except (ValueError, TypeError) as error:  # an option that is no number
        where = parsed.render_as_string(hide_password=True)
        raise UsageError(
            f"the label database {where} can't be used: {in_words(error)}; name another by "
            "--database"
        ) from error
    database = Database(engine)
    try:
        _migrate(database)
        _require_whole(database)
        # Not before it is known to be ours: another program's file stays as it is.
        if database.is_sqlite:
            database.close()  # so that SQLite takes back what it made beside the file
            if not parsed.query:
                database.notes += close_to_others(Path(str(parsed.database)), home)
                database.stand_for(Path(str(parsed.database)))
            _write_ahead(database)
    # An option that it does not know, a right it lacks; a version that is none.
    except (sa.exc.ProgrammingError, CommandError) as error:
        database.close()
        raise UsageError(
            f"the label database {database.url} can't be used: "
            f"{in_words(getattr(error, 'orig', None) or error)}; name another by --database"
        ) from error
    except BaseException:
        database.close()
        raise
    return database


def _write_ahead(database: Database) -> None:
    """Let SQLite write ahead, so that who reads and who writes don't wait for each other."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            with database.look() as connection:
                if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except StoreDownError:
            # Another may be opening it, too: SQLite itself does not wait with this.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _parse(url: str) -> sa.URL:
    shown = re.sub(r"://[^@]*@", "://***@", url)
    if not url.strip() or "\0" in url or _SURROGATE.search(url):
        raise UsageError(f"the label database {shown!r} is neither a file nor an address")
    if "://" not in url:
        return sa.URL.create("sqlite", database=url)
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UsageError(
            f"the label database {shown!r} is no address as sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise UsageError(
            f"the label database is {parsed.get_backend_name()!r}; sqlite and postgresql work"
        )
    return parsed.set(drivername="sqlite")


def _open_sqlite(url: sa.URL, *, create: bool) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise UsageError("labels are not kept in memory: give the SQLite database a file")
    path = Path(url.database)
    if not os.path.exists(path):
        if not create:
            raise UsageError(f"there is no label database at {path}")
        make_folder(path.parent)
        if not url.query:  # with one, the path may be an address of SQLite's own
            make_file(path)
    elif not os.path.isfile(path) and not url.query:
        raise UsageError(f"the label database {path} is no file; name another by --database")
    elif not url.query and not _is_sqlite(path):
        raise UsageError(f"{path} is not a database: name the right file by --database")
    engine = sa.create_engine(
        url,
        hide_parameters=True,  # of an error's text, which goes to the log
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        pool_size=CONNECTIONS,
        max_overflow=_MORE_CONNECTIONS,
        pool_timeout=_BUSY_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def _prepare(raw: Any, _record: Any) -> None:
        # The driver would begin transactions of its own, and deferred ones: we begin them.
        raw.isolation_level = None
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("alone", False):
            immediate = options.get("immediate", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _is_sqlite(path: Path) -> bool:
    """Tell whether a file is SQLite's, or empty as one that is new; a pipe is not waited for."""
    with storage_errors(path):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(16) in (b"", b"SQLite format 3\0")


def _open_postgresql(url: sa.URL) -> sa.Engine:
    require_packages("psycopg", extra="postgres")
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        # A server that is stopped, or a cable that is out, answers nothing: the last bounds that.
        connect_args={"connect_timeout": _BUSY_SECONDS, "tcp_user_timeout": 1000 * _BUSY_SECONDS},
        pool_size=CONNECTIONS,
        max_overflow=_MORE_CONNECTIONS // 2,
        pool_timeout=_BUSY_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def _bound(raw: Any, _record: Any) -> None:
        raw.execute(f"SET lock_timeout = '{_BUSY_SECONDS}s'")
        raw.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'")
        raw.commit()

    @event.listens_for(engine, "checkin")
    def _note(_raw: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _try(raw: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", time.monotonic()) > _IDLE_SECONDS:
            try:
                engine.dialect.do_ping(raw)
            except engine.dialect.loaded_dbapi.Error as error:
                # The pool then takes a new connection.
                raise sa.exc.DisconnectionError from error

    return engine


def _migrate(database: Database) -> None:
    """Run what migrations are missing, one process at a time."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    with database.read() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
    with database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # indexes take their time
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATIONS_LOCK)))
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in {s.revision for s in scripts.walk_revisions()}:
            raise ArtifactError(
                f"the label database {database.url} was made by a newer version (tables {current}, "
                f"this program knows {head}): update this program"
            )
        others = {*sa.inspect(connection).get_table_names()} - {"alembic_version"}
        if current is None and others:
            raise ArtifactError(
                f"the label database {database.url} holds tables of another program "
                f"({', '.join(sorted(others)):.200}); name another by --database"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _require_whole(database: Database) -> None:
    """Refuse a database whose version promises tables or columns that it hasn't."""
    with database.look() as connection:
        there = sa.inspect(connection).get_multi_columns()
    for table in metadata.tables.values():
        names = {column["name"] for column in there.get((None, table.name), ())}
        missing = sorted({*table.columns.keys()} - names)
        if missing:
            raise ArtifactError(
                f"the label database {database.url} was edited: its table {table.name} has no "
                f"{', '.join(missing)}; restore it, or name another by --database"
            )
