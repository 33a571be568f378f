"""A live conversation through the pages, answered by a worker that is none."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.submissions import Submissions
from data.labels.live.conversations import Conversations
from data.labels.live.protocol import Channel, connect, listening, may_come_in
from data.labels.live.relay import Relay
from data.labels.records import Campaign, CampaignSettings
from data.labels.store.database import Database
from data.labels.web.app import create_app

POLICIES = ["secret-large", "secret-small"]


class Worker:
    """Answers what it is asked when it is told to."""

    def __init__(self, channel: Channel, asked: list[dict[str, Any]]) -> None:
        self.channel = channel
        self.asked = asked

    def wait(self, number: int = 1) -> dict[str, Any]:
        while len(self.asked) < number:
            self.asked += [one for one in self.channel.receive() if "ask" in one]
        return self.asked[number - 1]

    def say(self, turn: str, *texts: str) -> None:
        self.channel.send({"turn": turn, "texts": list(texts)})

    def finish(self, turn: str, *texts: str, failure: str = "") -> None:
        said = {"texts": texts, "policies": POLICIES[: len(texts)], "ended": [True] * len(texts)}
        self.channel.send({"turn": turn, "done": {**said, "tokens": 7, "failure": failure}})


class Live:
    """The pages, and a place for workers."""

    def __init__(self, database: Database, file: Path, relay: Relay, campaign: Campaign) -> None:
        self.database, self.file, self.campaign, self.relay = database, file, campaign, relay
        self.app = create_app(database, allowed_hosts=["localhost"], relay=relay)

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        with listening(self.file) as (taken, token):
            taken.settimeout(20)
            channel = Channel(taken.accept()[0])
            hello, *asked = channel.receive()
            assert may_come_in(hello, token)
            channel.send({"ready": True})
            try:
                yield Worker(channel, asked)
            finally:
                channel.close()


@pytest.fixture
def live(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.setattr("data.labels.live.relay._RETRY_SECONDS", 0.02)
    asked = CampaignSettings(mode="pairs", overlap=0.0, answers=2, most_turns=2)
    campaign = Campaigns(database).create("talks", asked, "# Be kind")
    Conversations(database).suggest(campaign.id, ["Ask <b>me</b>", "Or me"])
    file = tmp_path / "run" / "labels" / "worker.json"
    with Relay(Conversations(database), file).running() as relay:
        yield Live(database, file, relay, campaign)


@pytest.fixture
def app(live: Live) -> Any:
    return live.app


class Person:
    """Somebody who talks, as the script does."""

    def __init__(self, live: Live, browser: Any, token: str) -> None:
        self.browser = browser
        self.base = f"/c/{live.campaign.id}/talk"
        self.come_in(token)
        self.form(f"/c/{live.campaign.id}/guidelines", version="1")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.browser, name)

    def facts(self) -> dict[str, str]:
        html = self.get(self.base).text
        found = re.search(r'<div id="talk"([^>]*)>', html)
        assert found, html[:500]
        return {k: unescape(v) for k, v in re.findall(r'data-(\w+)="([^"]*)"', found[1])}

    def say(self, text: str, to: str = "", **facts: str) -> Any:
        known = facts or self.facts()
        body = {"text": text} if to else {"text": text, "key": known["key"]}
        return self.client.post(
            self.base + to,
            content=json.dumps(body),
            headers={
                "origin": "http://localhost",
                "accept": "application/json",
                "content-type": "application/json",
                "x-csrf-token": known["csrf"],
            },
        )

    def look(self, turn: str) -> dict[str, Any]:
        answer = self.get(f"{self.base}/{turn}", accept="application/json")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def until(self, turn: str, what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        end = time.monotonic() + 20
        while not what(standing := self.look(turn)):
            assert time.monotonic() < end, standing
            time.sleep(0.01)
        return standing


@pytest.fixture
def person(
    live: Live, browser: Callable[[], Any], invite: Callable[..., str]
) -> Callable[[str], Person]:
    return lambda name: Person(live, browser(), invite(name))


@pytest.fixture
def ann(person: Callable[[str], Person]) -> Person:
    return person("ann")


def test_from_a_message_to_the_next_one(live: Live, ann: Person) -> None:
    home = ann.follow("/").text
    assert "Ask &lt;b&gt;me&lt;/b&gt;" in home and "<b>me</b>" not in home
    facts = ann.facts()
    with live.worker() as worker:
        sent = ann.say("Is <i>tea</i> wet?", **facts)
        turn = sent.json()["turn"]
        assert sent.json()["texts"] == []
        assert ann.say("Is <i>tea</i> wet?", **facts).json()["turn"] == turn  # once
        asked = worker.wait()
        assert (asked["ask"], asked["answers"]) == (turn, 2)
        assert asked["messages"] == [{"role": "user", "content": "Is <i>tea</i> wet?"}]
        page = ann.get(ann.base).text
        assert f'data-turn="{turn}"' in page and "Is &lt;i&gt;tea" in page
        worker.say(turn, "Ye", "N")
        part = ann.until(turn, lambda standing: standing["texts"])
        assert sorted(part["texts"]) == ["N", "Ye"] and part["worker"] is True
        worker.finish(turn, "Yes.", "No.")
        there = ann.until(turn, lambda standing: "next" in standing)["next"]
        # What stood at a place while it was written stands there when it is ranked.
        task = ann.task(there)
        assert [text[:1] for text in task.answers] == [text[:1] for text in part["texts"]]
        for text in (page, task.html, json.dumps(part)):
            assert not any(policy in text for policy in POLICIES)
        best = task.answers.index("Yes.")
        sent = ann.send(task, "submit", choice=-2 if best == 0 else 2)
        assert sent.json()["next"] == f"/c/{live.campaign.id}/next"
        page = ann.follow(sent.json()["next"]).text
        assert "Yes." in page and "No." not in page and "Ask &lt;b&gt;" not in page
        turn = ann.say("Why?").json()["turn"]
        said = [("user", "Is <i>tea</i> wet?"), ("assistant", "Yes."), ("user", "Why?")]
        messages = [{"role": role, "content": text} for role, text in said]
        assert worker.wait(2)["messages"] == messages
        worker.finish(turn, "Same.")
        there = ann.until(turn, lambda standing: "next" in standing)["next"]
    page = ann.get(there).text
    assert "there was nothing to rank" in page and "it has all of its 2 messages" in page
    [row] = Submissions(live.database).labels(live.campaign.id)
    assert row.assignment.task.new.policies == POLICIES
    assert row.label.submission.strength == 2


def test_a_worker_that_dies_loses_no_message(live: Live, ann: Person) -> None:
    turn = ann.say("Hello").json()["turn"]
    assert ann.look(turn)["worker"] is False
    with live.worker() as worker:
        assert worker.wait()["ask"] == turn
        worker.say(turn, "Half an", "ans")
        ann.until(turn, lambda standing: standing["texts"])
    ann.until(turn, lambda standing: not standing["worker"] and not standing["texts"])
    with live.worker() as worker:
        assert worker.wait()["ask"] == turn
        worker.channel.send({"turn": turn, "done": {"texts": 1}})  # an odd one is let go
    with live.worker() as worker:
        assert worker.wait()["ask"] == turn
        worker.finish(turn, failure="too long")
        there = ann.until(turn, lambda standing: "next" in standing)["next"]
    assert "This conversation is over: too long" in ann.get(there).text


def test_what_is_not_said_by_the_page_is_refused(
    live: Live, ann: Person, person: Callable[[str], Person]
) -> None:
    assert ann.say(" ").status_code == 422
    assert ann.say("x" * 8001).status_code == 422
    assert ann.say("a\0").status_code == 400
    assert ann.say("Hello", key="short", csrf=ann.facts()["csrf"]).status_code == 422
    assert ann.say("Hello", key="k" * 20, csrf="no").status_code == 403
    assert ann.say("Hel", to="/draft").status_code == 204
    assert ">Hel</textarea>" in ann.get(ann.base).text
    turn = ann.say("Hello").json()["turn"]
    assert ann.say("Again").status_code == 409
    bob = person("bob")
    assert bob.get(f"{bob.base}/{turn}").status_code == 404
    assert ">Hel</textarea>" not in bob.get(bob.base).text
    assert ann.form(ann.base, to=f"{ann.base}/end").status_code == 303
    assert "Hello" not in ann.get(ann.base).text
    Campaigns(live.database).close(live.campaign.id)
    assert "campaign is closed" in ann.get(ann.base).text
    assert ann.say("Hello").status_code == 409


def test_only_who_knows_the_token_is_listened_to(tmp_path: Path) -> None:
    file = tmp_path / "labels" / "worker.json"
    assert connect(file) is None
    with listening(file) as (taken, token):
        assert file.stat().st_mode & 0o077 == 0
        known = json.loads(file.read_text())
        file.write_text(json.dumps(known | {"token": "guessed"}))
        channel = connect(file)
        assert channel is not None
        there = Channel(taken.accept()[0])
        assert not any(may_come_in(one, token) for one in there.receive())
        assert not may_come_in({"token": 1}, token) and may_come_in(known, token)
        channel.close()
        there.close()
        file.write_text(json.dumps(known | {"host": "192.0.2.1"}))
        assert connect(file) is None  # of this machine alone


def test_the_thread_ends_with_the_pages(live: Live) -> None:
    assert sum(one.name == "relay" for one in threading.enumerate()) == 1
