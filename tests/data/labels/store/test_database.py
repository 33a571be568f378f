"""The database itself: its tables, what it refuses, and how it is opened."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from data.errors import ArtifactError, UsageError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import CampaignSettings, NewTask, Submission
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database, open_database


def test_the_migrations_make_the_tables_that_the_code_expects(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, tables.metadata)
    assert [d for d in differences if "alembic_version" not in str(d)] == []


def test_a_newer_database_is_refused_and_an_equal_one_opened_again(url: str) -> None:
    database = open_database(url)
    open_database(url).close()
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(ArtifactError, match=r"newer version .*9999"):
        open_database(url)


def test_two_may_open_a_new_database_at_once(url: str) -> None:
    failures = []

    def attempt() -> None:
        try:
            open_database(url).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("change", ["UPDATE labels SET seconds = 0", "DELETE FROM labels"])
def test_the_database_refuses_to_change_a_label(database: Database, change: str) -> None:
    campaign = Campaigns(database).create("c", CampaignSettings(mode="rank"), "")
    Campaigns(database).add_tasks(campaign.id, [NewTask("t", "p", ["a", "b"])])
    ada = Accounts(database).add("Ada", "person").id
    given = Queue(database).next(ada, campaign.id)
    assert given is not None
    label = Submissions(database).submit(given.id, ada, Submission("k", [1, 2], seconds=3.0))
    with (
        pytest.raises(sa.exc.DBAPIError, match="labels are only added"),
        database.write() as connection,
    ):
        connection.execute(sa.text(change))
    assert [row.label for row in Submissions(database).labels(campaign.id)] == [label]


def test_the_audit_log_is_only_added_to_and_shares_the_fate_of_the_deed(database: Database) -> None:
    audit = Audit(database)
    with database.write() as connection:
        audit.write(connection, "ada", "export", "c1", rows=3)
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        audit.write(connection, "ada", "export", "c2")
        raise ZeroDivisionError
    [entry] = audit.entries()
    assert (entry.who, entry.action, entry.subject, entry.detail) == (
        "ada",
        "export",
        "c1",
        {"rows": 3},
    )
    for change in ("UPDATE audit SET who = 'eve'", "DELETE FROM audit"):
        with pytest.raises(sa.exc.DBAPIError, match="only added"), database.write() as connection:
            connection.execute(sa.text(change))
    assert list(audit.entries(subject="c1")) == [entry]
    assert list(audit.entries(subject="c2")) == []


def test_a_missing_file_an_odd_address_and_memory_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no label database at"):
        open_database(f"sqlite:///{tmp_path / 'none.sqlite'}", create=False)
    assert not (tmp_path / "none.sqlite").exists()
    with pytest.raises(UsageError, match="sqlite and postgresql work"):
        open_database("mysql://host/name")
    with pytest.raises(UsageError, match="memory"):
        open_database("sqlite://")
    with pytest.raises(UsageError, match="can't be opened"):
        open_database("postgresql://nobody@127.0.0.1:1/none")


def test_sqlite_waits_for_the_disk_where_a_label_is_acknowledged(tmp_path: Path) -> None:
    database = open_database(str(tmp_path / "new" / "labels.sqlite"))
    full, normal = 2, 1
    for durable, expected in ((True, full), (False, normal), (True, full)):
        with database.write(durable=durable) as connection:
            assert connection.scalar(sa.text("PRAGMA synchronous")) == expected
    with database.read() as connection:
        assert connection.scalar(sa.text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(sa.text("PRAGMA foreign_keys")) == 1
    database.close()


def test_without_its_driver_postgresql_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"psycopg.*pip install 'rlhf-pipeline\[postgres\]'"):
        open_database("postgresql://me@127.0.0.1:1/none")
