"""Annotators in live conversations at once: how long a first word takes, and whether one is lost.

    python tests/benchmarks/live_load.py RUN --model sft --model ppo [--seconds 60] [--kills 3]

`rlhf label serve` and `rlhf label converse` on a copy of a run's folder; the annotators do what the
page's script does: write a message (of a list), look every quarter second, rank the answers, write
the next one. With `--kills` the worker is killed with SIGKILL so many times, evenly spread, and
started again. At the end every message and label that was acknowledged must be in the database
once, as it was sent. Told are the seconds from a message to its first word and to its last; those
that a kill fell into are told apart. Clients and both processes share the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data.labels.store import tables  # noqa: E402
from data.labels.store.database import open_database  # noqa: E402

RLHF = str(Path(sys.executable).with_name("rlhf"))
TEXTS = ("Who is the baker?", "Where does the teacher live?", "What is 3 + 4?", "Tell me more.")


def facts(html: str, of: str) -> dict[str, str] | None:
    found = re.search(rf'<div id="{of}"([^>]*)>', html)
    pairs = re.findall(r'data-(\w+)="([^"]*)"', found[1]) if found else ()
    return {name: unescape(value) for name, value in pairs} if found else None


class Annotator(threading.Thread):
    """Talks until the time is over."""

    def __init__(self, link: str, until: float, seed: int) -> None:
        super().__init__()
        base = link.partition("/invite/")[0]
        self.http = httpx.Client(
            base_url=base, headers={"origin": base}, follow_redirects=True, timeout=60
        )
        assert self.http.post(link.removeprefix(base)).status_code == 200
        self.until, self.rng = until, random.Random(seed)
        self.sent: dict[str, str] = {}
        self.ranked: dict[str, dict[str, Any]] = {}
        self.waits: list[tuple[float, float, float]] = []
        self.failure = ""

    def run(self) -> None:
        try:
            while time.monotonic() < self.until:
                self.turn()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def send(self, address: str, csrf: str, body: dict[str, Any]) -> Any:
        headers = {"x-csrf-token": csrf, "accept": "application/json"}
        answer = self.http.post(address, json=body, headers=headers)
        assert answer.status_code == 200, (address, answer.status_code, answer.text)
        return answer.json()

    def turn(self) -> None:
        page = self.http.get("/")
        if page.url.path.endswith("/guidelines"):
            found = dict(re.findall(r'name="(csrf|version)" value="([^"]*)"', page.text))
            page = self.http.post(page.url.path, data=found)
        if (task := facts(page.text, "task")) is not None:
            count = int(task["count"])
            sheet: dict[str, Any] = {"key": task["key"], "flags": [[]] * count, "seconds": 1.0}
            tiers = [*range(1, count + 1)]
            self.rng.shuffle(tiers)
            pairs = task["mode"] == "pairs"
            sheet |= {"tiers": [None] * count if pairs else tiers, "ratings": [None] * count}
            sheet |= {"choice": self.rng.choice([-2, 1])} if pairs else {}
            time.sleep(1 + self.rng.expovariate(1))  # reads; the server takes no more a minute
            self.send(f"{task['base']}/submit", task["csrf"], sheet)
            self.ranked[task["base"].rpartition("/")[2]] = sheet
            return
        talk = facts(page.text, "talk")
        assert talk is not None, page.text[:300]
        turn, began, first = talk["turn"], time.monotonic(), 0.0
        if not turn:
            text = f"{self.rng.choice(TEXTS)} ({self.rng.random()})"
            turn = self.send(talk["base"], talk["csrf"], {"key": talk["key"], "text": text})["turn"]
            self.sent[turn] = text
        while True:
            standing = self.http.get(
                f"{talk['base']}/{turn}", headers={"accept": "application/json"}
            ).json()
            now = time.monotonic()
            if not first and (any(standing.get("texts", ())) or "next" in standing):
                first = now
            if "next" in standing:
                self.waits.append((began, first, now))
                return
            time.sleep(0.25)


@contextlib.contextmanager
def process(*command: str) -> Any:
    """Run a command of rlhf while the block runs."""
    started = subprocess.Popen([RLHF, "label", *command], stdout=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        started.wait()


def wait_for_worker(run: Path, worker: subprocess.Popen[bytes]) -> None:
    """Return once a worker tells its address; a new one takes that of a killed one away first."""
    place = run / "labels" / "worker.json"
    while True:
        with contextlib.suppress(FileNotFoundError):
            if str(worker.pid) in place.read_text():
                return
        assert worker.poll() is None, "the worker ended"
        time.sleep(0.05)


def centile(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    at = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 3), "p95": round(at, 3)}


def lost(place: Path, people: list[Annotator]) -> list[str]:
    """Name what was acknowledged and is not in the database as it was sent."""
    turn, label = tables.turns.c, tables.labels.c
    store = open_database(str(place))
    with store.read() as connection:
        texts = {row.id: row.text for row in connection.execute(sa.select(turn.id, turn.text))}
        keys = sa.select(label.assignment_id, label.submission_key)
        labels = [tuple(row) for row in connection.execute(keys)]
    store.close()
    wrong = [f"message {k}" for one in people for k, v in one.sent.items() if texts.get(k) != v]
    sent = [(given, sheet["key"]) for one in people for given, sheet in one.ranked.items()]
    wrong += [f"label {given}" for given, key in sent if labels.count((given, key)) != 1]
    return wrong + ["a label that nobody gave"] * (len(labels) - len(sent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--answers", type=int, default=2)
    parser.add_argument("--annotators", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        run = Path(scratch) / "run"
        run.mkdir()
        models = [m for one in options.model for m in ("--model", str(options.run.resolve() / one))]
        worker = ["converse", str(run), *models, "--answers", str(options.answers)]
        stack.enter_context(process("serve", str(run), "--port", "0"))
        answering = stack.enter_context(process(*worker))
        wait_for_worker(run, answering)
        names = [f"person-{n}" for n in range(options.annotators)]
        told = subprocess.check_output([RLHF, "label", "invite", str(run), *names], text=True)
        until = time.monotonic() + options.seconds
        links = [line.split("\t")[1] for line in told.splitlines()]
        people = [Annotator(link, until, seed) for seed, link in enumerate(links)]
        for person in people:
            person.start()
        kills = []
        for _ in range(options.kills):
            time.sleep(options.seconds / (options.kills + 1))
            os.kill(answering.pid, signal.SIGKILL)
            down = time.monotonic()
            answering = stack.enter_context(process(*worker))
            wait_for_worker(run, answering)
            kills.append((down, time.monotonic() + 1.0))
        for person in people:
            person.join()
        waits = [wait for person in people for wait in person.waits]
        hit = [w for w in waits if any(w[0] < end and w[2] > down for down, end in kills)]
        calm = [wait for wait in waits if wait not in hit]
        wrong = lost(run / "labels" / "labels.sqlite", people)
        failures = [person.failure for person in people if person.failure]
        result = {
            "messages": sum(len(person.sent) for person in people),
            "labels": sum(len(person.ranked) for person in people),
            "first_word": centile([first - began for began, first, _ in calm]),
            "last_word": centile([last - began for began, _, last in calm]),
            "first_word_over_a_kill": centile([first - began for began, first, _ in hit]),
            "lost": wrong,
            "failures": failures,
            "load": os.getloadavg(),
        }
        print(json.dumps(result, indent=2))
    sys.exit(bool(wrong or failures))


if __name__ == "__main__":
    main()
