"""Getting in: invites, sessions and passwords."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from data.errors import LabelConflictError, NotYoursError, UsageError
from data.labels.campaign.accounts import IDLE_HOURS, SESSION_HOURS, Accounts
from data.labels.campaign.notices import dismiss, notices
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return Accounts(database)


def test_an_invite_lets_one_person_in_once(accounts: Accounts) -> None:
    invite, token = accounts.invite("annotator", " Ada  L. ", 24, "boss")
    ada, session_token, csrf = accounts.accept(token)
    assert (ada.name, ada.role, ada.kind, ada.active) == ("Ada L.", "annotator", "person", True)
    session = accounts.session(session_token)
    assert session is not None and (session.annotator, session.csrf) == (ada, csrf)
    with pytest.raises(NotYoursError):
        accounts.accept(token)
    with pytest.raises(NotYoursError):
        accounts.accept("guessed")
    assert accounts.session("guessed") is None
    [told] = accounts.invites()
    assert told.id == invite.id and told.used_at is not None


def test_an_invite_expires_and_can_be_revoked(accounts: Accounts, clock: Any) -> None:
    late = accounts.invite("annotator", "Ada", 1, "boss")[1]
    invite, revoked = accounts.invite("annotator", "Bob", 1, "boss")
    accounts.revoke_invite(invite.id, by="boss")
    with pytest.raises(NotYoursError):
        accounts.accept(revoked)
    clock.move(3601)
    with pytest.raises(NotYoursError):
        accounts.accept(late)
    assert accounts.list() == []


def test_a_second_invite_lets_the_same_person_in_again_but_not_as_another_role(
    accounts: Accounts,
) -> None:
    first = accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])[0]
    assert accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])[0] == first
    with pytest.raises(UsageError, match="annotator"):
        accounts.invite("admin", "Ada", 1, "boss")


def test_sessions_end(accounts: Accounts, clock: Any) -> None:
    def sign_in() -> tuple[str, str]:
        annotator, token, _ = accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])
        return annotator.id, token

    ada, first = sign_in()
    second, third = sign_in()[1], sign_in()[1]
    session = accounts.session(first)
    assert session is not None
    accounts.revoke(session.id)
    assert accounts.session(first) is None and accounts.session(second) is not None
    accounts.revoke_all(ada)
    assert accounts.session(second) is None and accounts.session(third) is None
    fourth = sign_in()[1]
    clock.move(SESSION_HOURS * 3600 + 1)
    assert accounts.session(fourth) is None
    fifth = sign_in()[1]
    accounts.deactivate(ada, by="boss")
    assert accounts.session(fifth) is None
    with pytest.raises(UsageError, match="deactivated"):
        accounts.invite("annotator", "Ada", 1, "boss")


def test_a_browser_that_does_not_come_is_signed_out(accounts: Accounts, clock: Any) -> None:
    token = accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])[1]
    almost = IDLE_HOURS * 3600 - 60
    for _ in range(14):  # 167.8 of the 168 hours
        clock.move(almost)
        assert accounts.session(token) is not None
    clock.move(almost)
    assert accounts.session(token) is None  # the seven days are over
    other = accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])[1]
    clock.move(IDLE_HOURS * 3600 + 1)
    assert accounts.session(other) is None
    short = Accounts(accounts.database, idle_hours=0.5)
    third = short.accept(short.invite("annotator", "Ada", 1, "boss")[1])[1]
    clock.move(1801)
    assert short.session(third) is None


def test_signing_somebody_out_makes_their_unused_invites_void(accounts: Accounts) -> None:
    ada = accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])[0]
    (hers, token), (bobs, _) = accounts.invite_all("annotator", ["Ada", "Bob"], 1, "boss")
    accounts.revoke_all(ada.id, by="boss")
    with pytest.raises(NotYoursError):
        accounts.accept(token)
    waiting = {one.id for one in accounts.invites() if one.used_at is one.revoked_at is None}
    assert waiting == {bobs.id}
    log = [(one.who, one.action, one.subject) for one in Audit(accounts.database).entries()]
    assert ("boss", "revoke invite", hers.id) in log and ("", "refused invite", hers.id) in log


def test_who_is_there_is_told_of_another_that_came_by_an_invite(accounts: Accounts) -> None:
    def come(client: str) -> Any:
        invite = accounts.invite("annotator", "Ada", 1, "boss")[1]
        return accounts.session(accounts.accept(invite, client)[1])

    def told(session: Any) -> list[str]:
        return [one.client for one in notices(accounts.database, session)]

    first = come("10.0.0.1")
    assert first is not None and first.notices == 0 and told(first) == []
    second = come("10.0.0.2")
    assert (told(first), told(second)) == (["10.0.0.2"], [])
    (notice,) = notices(accounts.database, first)
    dismiss(accounts.database, notice.id, second)  # who came can't silence it
    assert told(first) == ["10.0.0.2"]
    bob = accounts.session(accounts.accept(accounts.invite("annotator", "Bob", 1, "b")[1])[1])
    assert bob is not None
    dismiss(accounts.database, notice.id, bob)
    assert told(first) == ["10.0.0.2"]
    dismiss(accounts.database, notice.id, first)
    assert told(first) == []


def test_names_that_look_alike_are_one_persons(accounts: Accounts) -> None:
    accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])
    for name in ("ada", "ADA", "\uff21da", "\u0410\u0501\u0430"):
        with pytest.raises(UsageError, match="looks like 'Ada'"):
            accounts.invite("annotator", name, 1, "boss")
    accounts.invite("annotator", "Jose\u0301", 1, "boss")
    assert accounts.invites()[0].name == "Jos\u00e9"
    with pytest.raises(UsageError, match="looks like"):
        accounts.invite("annotator", "JOS\u00c9", 1, "boss")


def test_two_invites_for_names_that_look_alike_let_one_in(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two servers may have made them at the same moment.
    with monkeypatch.context() as patch:
        patch.setattr("data.labels.campaign.accounts.require_other_look", lambda *_: None)
        made = accounts.invite_all("annotator", ["Ada", "ADA"], 1, "boss")
    accounts.invite("annotator", "ADA", 1, "boss")  # again, while both are still open
    accounts.accept(made[0][1])
    with pytest.raises(NotYoursError):
        accounts.accept(made[1][1])
    assert [one.name for one in accounts.list()] == ["Ada"]


def test_accounts_of_before_go_on_whatever_their_names(accounts: Accounts) -> None:
    odd = accounts.add("\u0410da", "person")
    assert accounts.add("Ada", "person") != odd
    assert accounts.accept(accounts.invite("annotator", "\u0410da", 1, "boss")[1])[0] == odd
    decomposed = accounts.add("Jose\u0301", "person")
    assert accounts.accept(accounts.invite("annotator", "Jose\u0301", 1, "b")[1])[0] == decomposed
    judges = {accounts.add(name, "judge").id for name in ("gpt", "GPT", "g\u0440t")}
    assert len(judges) == 3


def test_an_invite_that_two_use_at_once_lets_one_in(accounts: Accounts) -> None:
    token = accounts.invite("annotator", "Ada", 1, "boss")[1]
    tokens = [token] * 4 + [accounts.invite("annotator", "Ada", 1, "boss")[1] for _ in range(2)]
    let_in: list[str] = []

    def use(token: str) -> None:
        with contextlib.suppress(NotYoursError):
            let_in.append(accounts.accept(token)[0].id)

    threads = [threading.Thread(target=use, args=(one,)) for one in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 3 and len(set(let_in)) == 1


def test_a_new_password_ends_the_other_sessions(accounts: Accounts) -> None:
    def come() -> Any:
        return accounts.session(
            accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])[1]
        )

    def alive(session: Any) -> bool:
        with accounts.database.read() as connection:
            query = sa.select(tables.sessions.c.revoked_at).where(
                tables.sessions.c.id == session.id
            )
            return connection.scalar(query) is None

    mine, other = come(), come()
    ada = mine.annotator.id
    accounts.set_password(ada, "correct horse battery", keep=mine.id)
    assert alive(mine) and not alive(other)
    with pytest.raises(UsageError, match="is the old one"):
        accounts.set_password(ada, "correct horse battery", old="correct horse battery")
    by_password = accounts.session(accounts.login(" Ada ", "correct horse battery")[1])
    accounts.set_password(ada, "battery horse correct", old="correct horse battery", keep=mine.id)
    assert alive(mine) and not alive(by_password)
    accounts.remove_password(ada, by="boss")
    assert not alive(mine) and accounts.with_password() == set()
    with pytest.raises(NotYoursError):
        accounts.login("Ada", "battery horse correct")
    log = [one.action for one in Audit(accounts.database).entries()]
    assert log.count("set password") == 2 and "remove password" in log


def test_a_password_that_changes_meanwhile_lets_nobody_in(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = accounts.add("Ada", "person").id
    accounts.set_password(ada, "correct horse battery")
    with accounts.database.read() as connection:
        stored = connection.scalar(sa.select(tables.annotators.c.password_hash))

    def slow(stored: str, password: str) -> bool:
        with accounts.database.write() as connection:
            connection.execute(tables.annotators.update().values(password_hash="another"))
        return True

    monkeypatch.setattr("data.labels.campaign.accounts._verify", slow)
    with pytest.raises(NotYoursError):
        accounts.login("Ada", "correct horse battery")
    with accounts.database.write() as connection:
        connection.execute(tables.annotators.update().values(password_hash=stored))
    with pytest.raises(LabelConflictError, match="meanwhile"):
        accounts.set_password(ada, "battery horse correct", old="correct horse battery")


def test_no_token_or_password_is_in_the_database(accounts: Accounts) -> None:
    _, token = accounts.invite("admin", "Ada", 1, "boss")
    ada, session_token, csrf = accounts.accept(token)
    accounts.set_password(ada.id, "correct horse battery")
    secrets = (token, session_token, csrf, "correct horse battery")
    with accounts.database.read() as connection:
        for table in tables.metadata.sorted_tables:
            text = str(connection.execute(sa.select(table)).all())
            assert not any(secret in text for secret in secrets), table.name


def test_a_password_signs_in_and_a_wrong_one_is_noted(accounts: Accounts) -> None:
    ada = accounts.accept(accounts.invite("annotator", "Ada", 1, "boss")[1])[0]
    with pytest.raises(NotYoursError):
        accounts.login("Ada", "")
    with pytest.raises(UsageError, match="12 to 1024"):
        accounts.set_password(ada.id, "short")
    accounts.set_password(ada.id, "correct horse battery")
    annotator, token, _ = accounts.login("Ada", "correct horse battery")
    assert annotator == ada and accounts.session(token) is not None
    for name, password in (("Ada", "wrong horse battery"), ("Eve", "correct horse battery")):
        with pytest.raises(NotYoursError, match="name or the password"):
            accounts.login(name, password)
    actions = [entry.action for entry in Audit(accounts.database).entries()]
    assert actions.count("failed sign in") == 3 and actions.count("sign in") == 1


def test_adding_the_same_annotator_twice_adds_one(accounts: Accounts) -> None:
    judge = accounts.add("judge", "judge")
    assert accounts.add("judge", "judge") == judge != accounts.add("judge", "simulated")
    assert accounts.get(judge.id) == judge and len(accounts.list()) == 2
