"""What the hot paths ask of the database: how often, by which index, and in how many trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

import data.labels.store.database as module
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import CampaignSettings, NewTask, Submission
from data.labels.store.database import Database, open_database
from data.labels.web import own


@contextmanager
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Gives the statements that are sent meanwhile, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, text: str, values: Any, _context: Any, _many: bool) -> None:
        sent.append((text, values))

    event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine, "before_cursor_execute", note)


@pytest.fixture
def steps(database: Database) -> dict[str, Callable[[], Any]]:
    """What one annotator does for one task, to be called in order."""
    campaign = Campaigns(database).create("c", CampaignSettings(mode="rank"), "")
    tasks = [NewTask(str(n), "p", ["a", "b"]) for n in range(40)]
    Campaigns(database).add_tasks(campaign.id, tasks)
    queue, submissions = Queue(database), Submissions(database)
    ada = Accounts(database).add("Ada", "person").id
    open_now: Callable[[], str] = lambda: queue.next(ada, campaign.id).id  # noqa: E731
    return {
        "next": open_now,
        "draft": lambda: submissions.save_draft(open_now(), ada, {}),
        "submit": lambda: submissions.submit(open_now(), ada, Submission("k", [1, 2])),
        "pace": lambda: own.pace(database, ada, campaign.id),
        "share": lambda: own.share(database, ada, campaign, own.Pace(0, 0, None)),
    }


def test_a_task_takes_few_statements(database: Database, steps: dict[str, Any]) -> None:
    counted = {}
    for name, step in steps.items():
        with statements(database) as sent:
            step()
        counted[name] = len(sent)
    # A task that is open already is found by 5; BEGIN is counted on SQLite alone.
    again = 5
    assert counted["next"] <= 12
    assert counted["draft"] <= again + 4
    assert counted["submit"] <= again + 6
    assert counted["pace"] <= 2
    assert counted["share"] == 1


def test_no_hot_statement_reads_a_whole_table(database: Database, steps: dict[str, Any]) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL rightly reads tables whole that are as small as a test's")
    with statements(database) as sent:
        for step in steps.values():
            step()
    plans = []
    with database.read() as connection:
        for text, values in sent:
            if text.startswith(("SELECT", "UPDATE", "DELETE")):
                found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
                plans += [str(row.detail) for row in found]
    assert [plan for plan in plans if plan.startswith("SCAN") and "CONSTANT" not in plan] == []
    # The texts of the tasks that are free are not passed over, nor what other people have open.
    mine = "INDEX ix_assignments_done (annotator_id=? AND campaign_id=? AND state=?)"
    assert any("COVERING INDEX ix_tasks_pool" in plan for plan in plans)
    assert any(f"USING {mine}" in plan for plan in plans)
    assert any(f"COVERING {mine}" in plan for plan in plans)


def test_a_look_opens_no_transaction(database: Database) -> None:
    with database.look() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
        raw: Any = connection.connection.driver_connection
        busy = raw.in_transaction if database.is_sqlite else raw.info.transaction_status != 0
        assert not busy
    # And the same connection is as before: what fails in a transaction is undone.
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'x'"))
        raise ZeroDivisionError
    with database.look() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) != "x"


def test_a_connection_that_broke_while_idle_is_replaced(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(url)
    if database.is_sqlite:
        database.close()
        pytest.skip("SQLite has no server that could go away")
    monkeypatch.setattr(module, "_IDLE_SECONDS", -1.0)
    with database.read() as connection:
        broken = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    other = open_database(url)
    with other.read() as connection:
        connection.execute(sa.select(sa.func.pg_terminate_backend(broken)))
    other.close()
    with database.look() as connection:
        assert connection.scalar(sa.text("SELECT pg_backend_pid()")) != broken
    database.close()
