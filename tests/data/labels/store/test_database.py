"""The database itself: its tables, what it refuses, and how it is opened."""

from __future__ import annotations

import hashlib
import stat
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from data.errors import ArtifactError, StoreDownError, UsageError
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


def _bare(column: sa.Column[Any]) -> sa.ColumnClause[Any]:
    return sa.column(column.name, column.type)


def test_a_database_of_before_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ScriptDirectory, "get_current_head", lambda self: "0002")
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0002"))
        patch.setattr("data.labels.store.database._require_whole", lambda _: None)
        database = open_database(url)
    now = database.now()
    people = [("a", "Ada"), ("b", "ada"), ("c", "\u0410da")]
    who, sessions = tables.annotators, tables.sessions
    before = sa.table("annotators", *(c for c in map(_bare, who.c) if c.name != "skeleton"))
    with database.write() as connection:
        for number, (one, name) in enumerate([*people, ("j", "ADA")]):
            values = {"id": one, "name": name, "kind": "judge" if one == "j" else "person"}
            created = now + timedelta(number)
            connection.execute(
                before.insert().values(**values, role="annotator", active=True, created_at=created)
            )
        campaign = {"id": "c", "name": "old", "closed": False, "settings": {}}
        guidelines = {"campaign_id": "c", "version": 1, "body": "Be fair"}
        added: list[tuple[sa.Table, str, dict[str, Any]]] = [
            (tables.campaigns, "title", {**campaign, "guidelines_version": 1}),
            (tables.guidelines, "edited_by", guidelines),
        ]
        for table, later, values in added:
            old = sa.table(table.name, *(c for c in map(_bare, table.c) if c.name != later))
            connection.execute(old.insert().values(**values, created_at=now))
        connection.execute(
            sessions.insert().values(
                id="s",
                token_sha256=hashlib.sha256(b"token").hexdigest(),
                annotator_id="a",
                created_at=now,
                expires_at=now + timedelta(7),
            )
        )
    database.close()
    database = open_database(url)
    accounts = Accounts(database)
    assert {one.name for one in accounts.list() if one.kind == "person"} == {
        name for _, name in people
    }
    with database.read() as connection:
        looks = {row.id: row.skeleton for row in connection.execute(sa.select(who)).all()}
    assert looks == {"a": "ada", "b": None, "c": None, "j": None}
    (kept,) = Campaigns(database).list()
    assert (kept.heading, kept.title, kept.guidelines) == ("old", "", "Be fair")
    Campaigns(database).edit_guidelines("c", "Be kind", version=1, by="a")
    again = Campaigns(database).create("old", CampaignSettings(), "Be fair")
    assert (again.guidelines, again.guidelines_version) == ("Be kind", 2)
    session = accounts.session("token")
    assert session is not None and session.expires_at - now < timedelta(hours=12, minutes=1)
    for _, name in people:
        accounts.invite("annotator", name, 1, "boss")
    database.close()


def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    def rights(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    home = tmp_path / "run" / "labels"
    path = home / "labels.sqlite"
    database = open_database(str(path), home=home)
    assert database.notes == []
    with database.write():
        files = sorted(one.name for one in home.iterdir())
        assert files == ["labels.sqlite", "labels.sqlite-shm", "labels.sqlite-wal"]
        assert {rights(one) for one in home.iterdir()} == {0o600}
    database.close()
    assert rights(home) == 0o700
    home.chmod(0o755)
    path.chmod(0o664)
    database = open_database(str(path), home=home)
    database.close()
    assert (rights(home), rights(path)) == (0o700, 0o600)
    assert [("0664" in one, "0755" in one) for one in database.notes] == [
        (True, False),
        (False, True),
    ]
    assert all("yours alone now" in one for one in database.notes)


def test_a_folder_that_may_be_shared_is_told_and_left(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    database = open_database(f"sqlite:///{shared}/labels.sqlite", home=tmp_path / "labels")
    database.close()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    [note] = database.notes
    assert f"{shared}" in note and "0755" in note and "chmod 700" in note
    assert stat.S_IMODE((shared / "labels.sqlite").stat().st_mode) == 0o600
    own = open_database(str(tmp_path / "new" / "labels.sqlite"))
    own.close()
    assert own.notes == []


def test_rights_that_can_not_be_changed_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.sqlite"
    open_database(str(path)).close()
    path.chmod(0o644)
    monkeypatch.setattr(Path, "chmod", lambda self, mode: None)
    database = open_database(str(path))
    database.close()
    [note] = database.notes
    assert "0644" in note and "file system keeps no rights" in note


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


def test_a_table_that_is_gone_is_told_with_its_name(database: Database) -> None:
    with (
        pytest.raises(StoreDownError, match=r"gold_answers.*bring back a copy"),
        database.look() as connection,
    ):
        connection.execute(sa.text("SELECT * FROM gold_answers"))


def test_a_right_that_was_revoked_is_told_with_its_table(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("rights are those of its file")
    with (
        pytest.raises(StoreDownError, match=r"denied for table annotators.*GRANT"),
        database.write() as connection,
    ):
        connection.execute(sa.text("REVOKE ALL ON annotators FROM CURRENT_USER"))
        connection.execute(sa.select(tables.annotators))


def test_a_statement_that_is_none_is_a_fault_of_ours(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite tells it as it tells a table that is gone")
    with pytest.raises(sa.exc.ProgrammingError), database.look() as connection:
        connection.execute(sa.text("SELEKT 1"))


def test_a_missing_file_an_odd_address_and_memory_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no label database at"):
        open_database(f"sqlite:///{tmp_path / 'none.sqlite'}", create=False)
    assert not (tmp_path / "none.sqlite").exists()
    with pytest.raises(UsageError, match="sqlite and postgresql work"):
        open_database("mysql://host/name")
    with pytest.raises(UsageError, match="memory"):
        open_database("sqlite://")
    with pytest.raises(StoreDownError, match="can't be used now"):
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


def test_a_lock_that_is_held_elsewhere_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.labels.store.database._BUSY_SECONDS", 1)
    with closing(open_database(url)) as database, closing(open_database(url)) as other:
        with other.engine.connect() as holding:
            if other.is_sqlite:
                holding = holding.execution_options(immediate=True)
            with holding.begin():
                if not other.is_sqlite:
                    holding.exec_driver_sql("LOCK TABLE campaigns IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(StoreDownError, match=r"can't be used now: .*lock"):
                    Campaigns(database).create("c", CampaignSettings(), "Be kind.")
        assert Campaigns(database).create("c", CampaignSettings(), "Be kind.").name == "c"
