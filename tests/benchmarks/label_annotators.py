"""Simulated annotators for `label_load.py`: what a browser and a person before it ask for.

Each comes in by an invite link, accepts the guidelines, and then over and over goes to the next
task, reads its page, thinks, saves drafts meanwhile and submits, with the cookie, the tokens and
the keys that the page and its script use. A request that finds no server is sent again, with the
same key, until it is answered.
"""

from __future__ import annotations

import html
import http.client
import json
import random
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

DRAFT_EVERY = 1.5
"""Seconds of thinking from draft to draft; the page's script saves 0.6 s after a change."""
_PATIENCE = 60.0
"""Seconds after which a request that is not answered is a failure."""
_PAUSE = 0.1
_TASK = re.compile(r'<div id="task" ([^>]*)>')
_DATA = re.compile(r'data-([a-z]+)="([^"]*)"')
_HIDDEN = re.compile(r'<input type="hidden" name="([a-z]+)" value="([^"]*)">')


class Refused(Exception):
    """An answer that an honest annotator must not get."""


@dataclass(frozen=True)
class Asked:
    """One request, with its retries.

    Attributes:
        kind: of the request.
        began: seconds of the clock that `time.monotonic` reads.
        ended: when it was answered.
    """

    kind: str
    began: float
    ended: float


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    text: str
    location: str
    cookie: str


@dataclass
class Diary:
    """What one annotator did.

    Attributes:
        asked: requests.
        acknowledged: body of each submission that was answered with 200, by its assignment.
        failure: why the annotator stopped early.
    """

    asked: list[Asked] = field(default_factory=list)
    acknowledged: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: str | None = None


class Browser:
    """One connection that is kept, and the session's cookie."""

    def __init__(self, address: str, diary: Diary) -> None:
        self.host = urlsplit(address).netloc
        self.origin = address
        self.diary = diary
        self.cookie = ""
        self.connection = http.client.HTTPConnection(self.host, timeout=_PATIENCE)

    def get(self, kind: str, path: str) -> Answer:
        return self._ask(kind, "GET", path, "", {})

    def send_form(self, kind: str, path: str, fields: dict[str, str]) -> Answer:
        form = {"content-type": "application/x-www-form-urlencoded", "origin": self.origin}
        return self._ask(kind, "POST", path, urlencode(fields), form)

    def send_json(self, kind: str, path: str, body: dict[str, Any], csrf: str) -> Answer:
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "x-csrf-token": csrf,
            "origin": self.origin,
        }
        return self._ask(kind, "POST", path, json.dumps(body), headers)

    def _ask(self, kind: str, method: str, path: str, body: str, headers: dict[str, str]) -> Answer:
        began = time.monotonic()
        while True:
            try:
                answer = self._once(method, path, body, headers)
                break
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                if time.monotonic() - began > _PATIENCE:
                    raise Refused(f"{method} {path} was not answered: {error!r}") from error
                time.sleep(_PAUSE)
        self.diary.asked.append(Asked(kind, began, time.monotonic()))
        if answer.status not in (200, 204, 303):
            raise Refused(f"{method} {path} was answered with {answer.status}: {answer.text[:200]}")
        return answer

    def _once(self, method: str, path: str, body: str, headers: dict[str, str]) -> Answer:
        sent = {**headers, "cookie": self.cookie} if self.cookie else headers
        self.connection.request(method, path, body or None, sent)
        response = self.connection.getresponse()
        text = response.read().decode()
        cookie = (response.getheader("set-cookie") or "").partition(";")[0]
        return Answer(response.status, text, response.getheader("location") or "", cookie)


class Person(threading.Thread):
    """Somebody who labels until they are told to stop.

    Args:
        address: of the server.
        invite: path of the invite link.
        think: mean seconds from task to label, exponentially distributed.
        inside: where everybody waits for the others to have come in.
        stop: told to stop.
        seed: of what the person does.
    """

    def __init__(
        self,
        address: str,
        invite: str,
        *,
        think: float,
        inside: threading.Barrier,
        stop: threading.Event,
        seed: int,
    ) -> None:
        super().__init__()
        self.diary = Diary()
        self.browser = Browser(address, self.diary)
        self.invite, self.think = invite, think
        self.inside, self.stop = inside, stop
        self.rng = random.Random(seed)

    def run(self) -> None:
        try:
            following = self.come_in()
            self.inside.wait()
            # They don't all begin in the same moment.
            self.stop.wait(self.rng.uniform(0, self.think))
            while not self.stop.is_set():
                following = self.label(following)
        except Exception as error:
            self.diary.failure = f"{type(error).__name__}: {error}"
            self.inside.abort()

    def come_in(self) -> str:
        """Use the invite, accept the guidelines, and return where the tasks are."""
        self.browser.get("come in", self.invite)
        self.browser.cookie = self.browser.send_form("come in", self.invite, {}).cookie
        following = self.browser.get("come in", "/").location
        guidelines = self.browser.get("come in", following).location
        fields = dict(_HIDDEN.findall(self.browser.get("come in", guidelines).text))
        return self.browser.send_form("come in", guidelines, fields).location

    def label(self, following: str) -> str:
        """Do one task, and return where the next one is."""
        place = self.browser.get("next", following).location
        page = self.browser.get("page", place).text
        task = _TASK.search(page)
        if task is None:
            raise Refused(f"{following} leads to no task but to {place}: give more --tasks")
        data = {name: html.unescape(value) for name, value in _DATA.findall(task[1])}
        sheet = self.fill_in(int(data["count"]))
        left = self.rng.expovariate(1 / self.think)
        while left > DRAFT_EVERY and not self.stop.wait(DRAFT_EVERY):
            self.browser.send_json("draft", f"{place}/draft", sheet, data["csrf"])
            left -= DRAFT_EVERY
        if self.stop.wait(left):
            return following
        said = {**sheet, "key": data["key"]}
        answer = self.browser.send_json("submit", f"{place}/submit", said, data["csrf"])
        self.diary.acknowledged[place.rpartition("/")[2]] = said
        following = str(json.loads(answer.text)["next"])
        if following.endswith("/feedback"):
            self.browser.get("feedback", following)
            return data["next"]
        return following

    def fill_in(self, answers: int) -> dict[str, Any]:
        tiers = self.rng.sample(range(1, answers + 1), answers)
        return {
            "phase": "rank",
            "tiers": tiers,
            "ratings": [self.rng.randint(1, 7) for _ in tiers],
            "flags": [[] for _ in tiers],
            "choice": None,
            "comment": "",
            "seconds": 2.0,
        }
