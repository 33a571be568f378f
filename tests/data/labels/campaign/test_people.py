"""Getting in: invites, sessions and passwords."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from data.errors import NotYoursError, UsageError
from data.labels.campaign.people import SESSION_HOURS, People
from data.labels.store import tables
from data.labels.store.audit import Audit
from data.labels.store.database import Database


@pytest.fixture
def people(database: Database) -> People:
    return People(database)


def test_an_invite_lets_one_person_in_once(people: People) -> None:
    invite, token = people.invite("annotator", " Ada  L. ", 24, "boss")
    ada, session_token, csrf = people.accept(token)
    assert (ada.name, ada.role, ada.kind, ada.active) == ("Ada L.", "annotator", "person", True)
    session = people.session(session_token)
    assert session is not None and (session.annotator, session.csrf) == (ada, csrf)
    with pytest.raises(NotYoursError):
        people.accept(token)
    with pytest.raises(NotYoursError):
        people.accept("guessed")
    assert people.session("guessed") is None
    [told] = people.invites()
    assert told.id == invite.id and told.used_at is not None


def test_an_invite_expires_and_can_be_revoked(people: People, clock: Any) -> None:
    late = people.invite("annotator", "Ada", 1, "boss")[1]
    invite, revoked = people.invite("annotator", "Bob", 1, "boss")
    people.revoke_invite(invite.id, by="boss")
    with pytest.raises(NotYoursError):
        people.accept(revoked)
    clock.move(3601)
    with pytest.raises(NotYoursError):
        people.accept(late)
    assert people.list() == []


def test_a_second_invite_lets_the_same_person_in_again_but_not_as_another_role(
    people: People,
) -> None:
    first = people.accept(people.invite("annotator", "Ada", 1, "boss")[1])[0]
    assert people.accept(people.invite("annotator", "Ada", 1, "boss")[1])[0] == first
    with pytest.raises(UsageError, match="annotator"):
        people.invite("admin", "Ada", 1, "boss")


def test_sessions_end(people: People, clock: Any) -> None:
    def sign_in() -> tuple[str, str]:
        annotator, token, _ = people.accept(people.invite("annotator", "Ada", 1, "boss")[1])
        return annotator.id, token

    ada, first = sign_in()
    second, third = sign_in()[1], sign_in()[1]
    session = people.session(first)
    assert session is not None
    people.revoke(session.id)
    assert people.session(first) is None and people.session(second) is not None
    people.revoke_all(ada)
    assert people.session(second) is None and people.session(third) is None
    fourth = sign_in()[1]
    clock.move(SESSION_HOURS * 3600 + 1)
    assert people.session(fourth) is None
    fifth = sign_in()[1]
    people.deactivate(ada, by="boss")
    assert people.session(fifth) is None
    with pytest.raises(UsageError, match="deactivated"):
        people.invite("annotator", "Ada", 1, "boss")


def test_no_token_or_password_is_in_the_database(people: People) -> None:
    _, token = people.invite("admin", "Ada", 1, "boss")
    ada, session_token, csrf = people.accept(token)
    people.set_password(ada.id, "correct horse battery")
    secrets = (token, session_token, csrf, "correct horse battery")
    with people.database.read() as connection:
        for table in tables.metadata.sorted_tables:
            text = str(connection.execute(sa.select(table)).all())
            assert not any(secret in text for secret in secrets), table.name


def test_a_password_signs_in_and_a_wrong_one_is_noted(people: People) -> None:
    ada = people.accept(people.invite("annotator", "Ada", 1, "boss")[1])[0]
    with pytest.raises(NotYoursError):
        people.login("Ada", "")
    with pytest.raises(UsageError, match="12 to 1024"):
        people.set_password(ada.id, "short")
    people.set_password(ada.id, "correct horse battery")
    annotator, token, _ = people.login("Ada", "correct horse battery")
    assert annotator == ada and people.session(token) is not None
    for name, password in (("Ada", "wrong horse battery"), ("Eve", "correct horse battery")):
        with pytest.raises(NotYoursError, match="name or the password"):
            people.login(name, password)
    actions = [entry.action for entry in Audit(people.database).entries()]
    assert actions.count("failed sign in") == 3 and actions.count("sign in") == 1


def test_adding_the_same_annotator_twice_adds_one(people: People) -> None:
    judge = people.add("judge", "judge")
    assert people.add("judge", "judge") == judge != people.add("judge", "simulated")
    assert people.get(judge.id) == judge and len(people.list()) == 2
