"""Getting in: invites, sessions and passwords."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from data.errors import NotYoursError, UsageError
from data.labels.campaign.accounts import SESSION_HOURS, Accounts
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
