"""A label database for each test, on SQLite and on PostgreSQL, where each has its own schema."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

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
from data.labels.store.database import Database, open_database


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords() -> Iterator[None]:
    """Hash passwords by Argon2id at its least cost, not at that of a server."""
    from argon2 import PasswordHasher

    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.labels.campaign.passwords._hasher", lambda: cheap)
        yield


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


@pytest.fixture(scope="session")
def new_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database that nothing was written to."""
    path = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    open_database(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def database(url: str, clock: Clock, new_sqlite: Path) -> Iterator[Database]:
    if url.startswith("sqlite"):
        shutil.copy(new_sqlite, url.removeprefix("sqlite:///"))
    opened = open_database(url)
    opened.clock = clock
    yield opened
    opened.close()


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
