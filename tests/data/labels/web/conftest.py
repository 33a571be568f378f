"""Pages over an SQLite database; what the database does itself is tested on both kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.records import Campaign, CampaignSettings, NewTask
from data.labels.store.database import Database
from data.labels.web.app import create_app

ORIGIN = "http://localhost"
GUIDELINES = "# Be fair\n\nPrefer *true* answers."


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'labels.sqlite'}"


def _tasks(number: int, *, completions: int = 3, **more: Any) -> list[NewTask]:
    return [
        NewTask(
            key=f"task {index}",
            prompt=[{"role": "user", "content": f"Question {index}?"}],
            completions=[f"answer {index}.{place}" for place in range(completions)],
            policies=[f"secret-policy-{place}" for place in range(completions)],
            **more,
        )
        for index in range(number)
    ]


class Browser:
    """A test client with the origin and the tokens that our pages give."""

    def __init__(self, app: Any) -> None:
        self.client = TestClient(
            app, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=True
        )

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers=headers)

    def follow(self, path: str) -> Any:
        for _ in range(8):
            response = self.client.get(path)
            if response.status_code != 303:
                return response
            path = response.headers["location"]
        raise AssertionError("redirects without end")

    def post(self, path: str, data: dict[str, str] | None = None, **headers: str) -> Any:
        return self.client.post(path, data=data or {}, headers={"origin": ORIGIN} | headers)

    def form(self, path: str, to: str | None = None, **fields: str) -> Any:
        """Send a form of a page, with the token in it."""
        return self.post(to or path, {"csrf": csrf(self.get(path).text), **fields})

    def token(self, path: str) -> str:
        """Return the CSRF token that a page holds."""
        return csrf(self.follow(path).text)

    def task(self, path: str) -> Task:
        """Return the task that an address leads to."""
        return Task(self.follow(path).text)

    def come_in(self, token: str) -> None:
        assert self.post(f"/invite/{token}").status_code == 303

    def send(self, page: Task, what: str, **changes: Any) -> Any:
        """Send what the script sends."""
        body: dict[str, Any] = {
            "key": page.key,
            "tiers": [None] * page.count,
            "ratings": [None] * page.count,
            "flags": [[] for _ in range(page.count)],
        }
        return self.client.post(
            f"{page.base}/{what}",
            content=json.dumps(body | changes),
            headers={
                "origin": ORIGIN,
                "accept": "application/json",
                "content-type": "application/json",
                "x-csrf-token": page.csrf,
            },
        )


class Task:
    """A task's page, read as the script reads it."""

    def __init__(self, html: str) -> None:
        self.html = html
        found = re.search(r'<div id="task"([^>]*)>', html)
        assert found, html[:2000]
        pairs = re.findall(r'data-(\w+)="([^"]*)"', found[1])
        data = {name: unescape(value) for name, value in pairs}
        self.base, self.key, self.csrf = data["base"], data["key"], data["csrf"]
        self.count = int(data["count"])
        self.sheet = json.loads(data["sheet"]) if data["sheet"] else None
        self.answers = [
            unescape(re.sub(r"<[^>]+>", "", text)).strip()
            for text in re.findall(r'data-fold="360">(.*?)</div>', html, re.DOTALL)
        ]


def csrf(html: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', html)
    assert found, html[:2000]
    return found[1]


@pytest.fixture
def make_tasks() -> Callable[..., list[NewTask]]:
    return _tasks


@pytest.fixture
def app(database: Database) -> Any:
    return create_app(database, allowed_hosts=["localhost"])


@pytest.fixture
def browser(app: Any) -> Iterator[Callable[[], Browser]]:
    made: list[Browser] = []

    def new() -> Browser:
        made.append(Browser(app))
        return made[-1]

    yield new
    for one in made:
        one.client.close()


@pytest.fixture
def invite(database: Database) -> Callable[..., str]:
    def new(name: str = "ann", role: Any = "annotator") -> str:
        return Accounts(database).invite(role, name, 24, "test")[1]

    return new


@pytest.fixture
def campaign(database: Database) -> Campaign:
    """Three tasks of three answers, rated and ranked."""
    made = Campaigns(database).create("first", CampaignSettings(overlap=0.0), GUIDELINES)
    Campaigns(database).add_tasks(made.id, _tasks(3))
    return made


@pytest.fixture
def ann(browser: Callable[[], Browser], invite: Callable[..., str], campaign: Campaign) -> Browser:
    """Somebody who is signed in and has accepted the guidelines."""
    one = browser()
    one.come_in(invite("ann"))
    one.form(f"/c/{campaign.id}/guidelines", version="1")
    return one
