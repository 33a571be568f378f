"""A label database for each test, on SQLite and on PostgreSQL.

PostgreSQL is Debian's: where it is installed, the tests start its cluster if it is down and make a
role and a database of their own, dropped at the end; each test has a schema of its own in it.
`RLHF_TEST_POSTGRES` may give the address of a server to use instead, with a role that may create
databases. With "postgresql" in `RLHF_TEST_REQUIRE`, as in CI, its absence is a failure.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa

from data.labels.database import Database, open_database
from data.labels.records import (
    Annotator,
    Assignment,
    Label,
    LabelRow,
    NewTask,
    Skip,
    Submission,
    Task,
)

_SCHEMAS = itertools.count()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        # Later by a microsecond each time, so that what came first is known.
        self.time += timedelta(microseconds=1)
        return self.time

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'labels.sqlite'}"
        return
    server = request.getfixturevalue("postgresql")
    schema = f"test_{next(_SCHEMAS)}"
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    yield f"{server}?options=-csearch_path%3D{schema}"


@pytest.fixture
def database(url: str, clock: Clock) -> Iterator[Database]:
    opened = open_database(url)
    opened.clock = clock
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a new, empty PostgreSQL database."""
    name, password = f"rlhf_test_{secrets.token_hex(6)}", secrets.token_hex(16)
    given = os.environ.get("RLHF_TEST_POSTGRES")
    if given:
        engine = sa.create_engine(given, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield sa.make_url(given).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()
        return
    port = _debian_cluster()
    _psql(port, f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    _psql(port, f"CREATE DATABASE {name} OWNER {name}")
    yield f"postgresql+psycopg://{name}:{password}@127.0.0.1:{port}/{name}"
    _psql(port, f"DROP DATABASE {name} WITH (FORCE)")
    _psql(port, f"DROP ROLE {name}")


def _debian_cluster() -> str:
    """Return the port of Debian's first cluster, started if it was down; skip without one."""
    if shutil.which("pg_lsclusters") is None:
        _skip("PostgreSQL is not installed: apt-get install postgresql")
    if os.geteuid() != 0:
        _skip("only root starts Debian's PostgreSQL; or set RLHF_TEST_POSTGRES")
    listed = subprocess.run(["pg_lsclusters", "-h"], capture_output=True, text=True, check=True)
    if not listed.stdout.strip():
        _skip("PostgreSQL has no cluster: pg_createcluster 15 main")
    version, cluster, port, status = listed.stdout.split()[:4]
    if status != "online":
        # Another run may start it at the same moment: what counts is that it answers.
        subprocess.run(["pg_ctlcluster", version, cluster, "start"], capture_output=True)
    _psql(port, "SELECT 1")
    return port


def _skip(reason: str) -> NoReturn:
    if "postgresql" in os.environ.get("RLHF_TEST_REQUIRE", "").split():
        pytest.fail(reason)
    pytest.skip(reason)


def _psql(port: str, statement: str) -> None:
    command = ["runuser", "-u", "postgres", "--", "psql", "-p", port, "-v", "ON_ERROR_STOP=1"]
    subprocess.run(
        [*command, "-qc", statement], cwd="/", check=True, capture_output=True, timeout=60
    )


_NUMBERS = itertools.count(1)


def _label_row(
    task: str,
    who: str,
    ranks: list[int],
    *,
    prompt: Any = None,
    completions: list[str] | None = None,
    purpose: Any = "label",
    order: list[int] | None = None,
    mode: Any = "rank",
    minutes: int = 0,
    revision: int = 1,
    assignment: str = "",
    new: dict[str, Any] | None = None,
    **said: Any,
) -> LabelRow:
    number = next(_NUMBERS)
    held = NewTask(
        key=f"key of {task}",
        prompt=f"prompt of {task}" if prompt is None else prompt,
        completions=completions or [f"{task} answer {place}" for place in range(len(ranks))],
        **(new or {}),
    )
    time = datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(minutes=minutes)
    given = Assignment(
        id=assignment or f"a{number}",
        task=Task(id=task, campaign_id="c1", new=held),
        annotator_id=who,
        purpose=purpose,
        order=list(range(len(ranks))) if order is None else order,
        strategy="random",
        probability=0.25,
        leased_until=time,
        guidelines_version=2,
    )
    submission = Submission(key=f"k{number}", ranks=ranks, **said)
    stored = Label(f"l{number}", given.id, revision, submission, time)
    return LabelRow(stored, given, Annotator(id=who, name=who.title()), "answers", mode)


@pytest.fixture(scope="session")
def label() -> Callable[..., LabelRow]:
    """Builds a label that was never stored: `label("task", "who", ranks)`."""
    return _label_row


@pytest.fixture(scope="session")
def skip() -> Callable[[str, str, str], Skip]:
    """Builds a skip that was never stored: `skip("task", "who", "reason")`."""

    def build(task: str, who: str, reason: str) -> Skip:
        row = _label_row(task, who, [1, 2])
        return Skip(row.assignment, row.annotator, reason, row.label.created_at)

    return build
