"""Fifty annotators at the label server at once: how long they wait, and whether a label is lost.

    python tests/benchmarks/label_load.py [--database URL] [--seconds 300] [--kills 10] [options]

The server is `rlhf label serve` on this machine; the annotators (see `label_annotators.py`) come in
by links of `rlhf label invite` and do what a browser does, with think times that are exponential
around `--think`. With `--kills` the server is killed with SIGKILL so many times, evenly spread, and
started again at once; requests in that time are sent again until they are answered, and told apart
("while the server was down": from the kill until the new server answers).

At the end every label that was acknowledged must be in the database once, as it was sent, and no
other; none of a task that the same annotator labelled before (repeats, which are meant, apart); no
task with more labels than wanted; no answer that an honest annotator must not get; and the 95th
centile of each kind of request below `--most` ms. The exit status tells.

Without `--database` it is an SQLite file in a temporary folder. A PostgreSQL one should be empty.
Clients and server share the machine: `load` is what else ran at the beginning and the end.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from label_annotators import Asked, Diary, Person  # noqa: E402

from data.labels.campaign.campaigns import Campaigns  # noqa: E402
from data.labels.campaign.submissions import Submissions  # noqa: E402
from data.labels.records import CampaignSettings, NewTask  # noqa: E402
from data.labels.store import tables  # noqa: E402
from data.labels.store.database import Database, open_database  # noqa: E402

WORDS = ["the", "store", "keeps", "what", "people", "say", "about", "answers", "for", "good"]
KINDS = ("next", "page", "draft", "submit")
RLHF = str(Path(sys.executable).with_name("rlhf"))
DATABASE = "RLHF_LABEL_LOAD_DATABASE"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--database", help="sqlite:///FILE or postgresql://...")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--think", type=float, default=2.0, help="seconds from task to label")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=0, help="how often to kill -9 the server")
    parser.add_argument("--most", type=float, default=100.0, help="ms, 95th centile of each kind")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def made_up(number: int, rng: random.Random) -> NewTask:
    """A task with four answers of some hundred words."""

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    answers = [f"{n} {text(rng.randint(40, 160))}" for n in range(4)]
    gold = [1, 2, 3, 4] if number % 50 == 0 else None
    return NewTask(f"{number}", text(40), answers, policies=["policy"] * 4, gold_ranks=gold)


def prepare(database: Database, options: argparse.Namespace) -> str:
    """Store a campaign of its own with its tasks, and return its name."""
    settings = CampaignSettings(
        gold_share=0.05, repeat_share=0.05, qualification_tasks=2, qualification_share=0.0
    )
    campaigns = Campaigns(database)
    campaign = campaigns.create(f"load {uuid.uuid4().hex[:8]}", settings, "Be fair.")
    rng = random.Random(options.seed)
    campaigns.add_tasks(campaign.id, (made_up(n, rng) for n in range(options.tasks)))
    return campaign.name


class Server:
    """The server's process, started again each time it is killed.

    Attributes:
        down: when it was killed and when the next one answered, in seconds of the clock.
    """

    def __init__(self, folder: Path, campaign: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.campaign = folder, campaign
        self.address = f"http://127.0.0.1:{self.port}"
        self.down: list[tuple[float, float]] = []
        self.log = (folder / "server.log").open("ab")
        self.process = self._start()

    def kill(self) -> None:
        """Kill it with SIGKILL, start another, and wait until that answers."""
        began = time.monotonic()
        self.process.kill()
        self.process.wait()
        self.process = self._start()
        self.down.append((began, time.monotonic()))

    def stop(self) -> list[str]:
        """End it as Ctrl-C would, and return what went wrong."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.log.close()
        said = (self.folder / "server.log").read_text(errors="replace")
        return [said[at - 500 : at + 3000] for at in [said.find("Traceback")] if at >= 0]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [RLHF, "label", "serve", str(self.folder), "--database", f"env:{DATABASE}"]
        command += ["--port", str(self.port), "--campaign", self.campaign]
        process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        until = time.monotonic() + 120
        while not self._answers():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit((self.folder / "server.log").read_text(errors="replace"))
            time.sleep(0.02)
        return process

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def invited(folder: Path, server: Server, names: list[str]) -> list[str]:
    """Return the path of an invite link for each name."""
    command = [RLHF, "label", "invite", str(folder), *names, "--database", f"env:{DATABASE}"]
    command += ["--address", server.address]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.split("\t")[1].removeprefix(server.address) for line in said.splitlines()]


def drive(
    server: Server, links: list[str], options: argparse.Namespace
) -> tuple[list[Diary], float]:
    """Let everybody in, then label for the time, and return what they did and when it began."""
    stop, inside = threading.Event(), threading.Barrier(len(links) + 1)
    people = [
        Person(
            server.address, link, think=options.think, inside=inside, stop=stop,
            seed=options.seed + number,
        )
        for number, link in enumerate(links)
    ]  # fmt: skip
    for person in people:
        person.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        inside.wait()
    began = time.monotonic()
    try:
        part = options.seconds / (options.kills + 1)
        for number in range(options.kills):
            time.sleep(max(0.0, began + part * (number + 1) - time.monotonic()))
            server.kill()
        time.sleep(max(0.0, began + options.seconds - time.monotonic()))
    finally:
        stop.set()
        for person in people:
            person.join()
    return [person.diary for person in people], began


def check(database: Database, campaign: str, diaries: list[Diary]) -> Iterator[str]:
    """Yield what is wrong with what the database holds."""
    found = Campaigns(database).get(campaign)
    assert found is not None
    rows = list(Submissions(database).labels(found.id, revisions="all"))
    sent = {given: said for diary in diaries for given, said in diary.acknowledged.items()}
    if not sent:
        yield "no label was acknowledged, so nothing was tried"
    stored = Counter(row.assignment.id for row in rows)
    lost = [given for given in sent if not stored[given]]
    if lost:
        yield f"{len(lost)} acknowledged labels are lost, the first of assignment {lost[0]}"
    if stored and max(stored.values()) > 1:
        yield "a label is there twice"
    if len(rows) != len(sent):
        yield f"{len(rows)} labels are stored, {len(sent)} were acknowledged"
    for row in rows:
        said, kept = sent.get(row.assignment.id), row.label.submission
        if said and (said["key"], said["tiers"], said["ratings"]) != (
            kept.key,
            [kept.ranks[index] for index in row.assignment.order],
            [kept.ratings[index] for index in row.assignment.order],
        ):
            yield f"the label of assignment {row.assignment.id} is not what was sent"
    each = Counter((r.assignment.task.id, r.annotator.id, r.assignment.purpose) for r in rows)
    if each and max(each.values()) > 1:
        yield "a task was labelled twice by one annotator"
    takers = Counter(r.assignment.task.id for r in rows if r.assignment.purpose == "label")
    task = tables.tasks.c
    query = sa.select(task.id, task.wanted, task.done).where(task.campaign_id == found.id)
    with database.read() as connection:
        counted = connection.execute(query).all()
    if any(takers[row.id] > row.wanted for row in counted if row.id in takers):
        yield "a task has more labels than wanted"
    if any(takers[row.id] != row.done for row in counted):
        yield "a task's count of labels is wrong"


def milliseconds(asked: list[Asked]) -> dict[str, float]:
    if not asked:
        return {"count": 0}
    values = [1000 * (one.ended - one.began) for one in asked]
    cuts = statistics.quantiles(values * 2, n=100, method="inclusive")
    chosen = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values)}
    return {"count": len(values)} | {name: round(value, 1) for name, value in chosen.items()}


def waits(
    diaries: list[Diary], down: list[tuple[float, float]], began: float
) -> dict[str, dict[str, float]]:
    """Return how long requests took, by kind, and those apart that met a server that was down."""
    asked = [one for diary in diaries for one in diary.asked]
    met = [one for one in asked if any(one.ended > a and one.began < b for a, b in down)]
    others = [one for one in set(asked).difference(met) if one.began >= began]
    told = {kind: milliseconds([one for one in others if one.kind == kind]) for kind in KINDS}
    told["while the server was down"] = milliseconds(met)
    return told


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = options.database or f"sqlite:///{folder / 'labels.sqlite'}"
        os.environ[DATABASE] = url
        os.environ["PYTHONPATH"] = str(ROOT)
        database = open_database(url)
        campaign = prepare(database, options)
        load = [os.getloadavg()[0]]
        server = Server(folder, campaign)
        links = invited(folder, server, [f"load {n}" for n in range(options.annotators)])
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        clients = time.process_time()
        diaries, began = drive(server, links, options)
        clients = time.process_time() - clients
        load.append(os.getloadavg()[0])
        problems = server.stop()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        problems += [diary.failure for diary in diaries if diary.failure]
        problems += check(database, campaign, diaries)
        database.close()
    labels = sum(len(diary.acknowledged) for diary in diaries)
    told = waits(diaries, server.down, began)
    problems += [
        f"the 95th centile of {kind} is above {options.most} ms"
        for kind in KINDS
        if told[kind].get("p95", 0.0) > options.most
    ]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report: dict[str, Any] = {
        "database": url.split(":")[0],
        "annotators": options.annotators,
        "seconds": options.seconds,
        "kills": len(server.down),
        "seconds_down": [round(b - a, 1) for a, b in server.down],
        "acknowledged": labels,
        "per_second": round(labels / options.seconds, 1),
        "load": [round(value, 1) for value in load],
        "server_cpu_seconds": round(used, 1),
        "clients_cpu_seconds": round(clients, 1),
        "ms": told,
        "problems": problems,
    }
    print(json.dumps(report, indent=2))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
