"""Fifty annotators at the label store at once: how long they wait, and whether a label is lost.

    python tests/benchmarks/label_load.py [--database URL] [--seconds 300] [--kills 10] [options]

Each simulated annotator is a thread of one process that asks for a task, thinks, and submits a
label, over and over; think times are exponential around `--think`. With `--kills` that process is
killed with SIGKILL so many times in the middle and started again; its annotators then go on. At the
end every label that was acknowledged must be in the database once, none of a task that the same
annotator labelled before, no task with more labels than wanted; the exit status tells.

Without `--database` it is an SQLite file in a temporary folder. A PostgreSQL one should be empty.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from data.labels.campaigns import Campaigns
from data.labels.database import Database, open_database
from data.labels.people import People
from data.labels.queue import Queue
from data.labels.records import CampaignSettings, NewTask, Submission
from data.labels.work import Work

WORDS = ["the", "store", "keeps", "what", "people", "say", "about", "answers", "for", "good"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--database", help="sqlite:///FILE or postgresql://...")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--think", type=float, default=2.0, help="seconds from task to label")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=0, help="how often to kill -9")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
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
        mode="rate_and_rank", gold_share=0.05, repeat_share=0.05, lease_seconds=30.0
    )
    campaigns = Campaigns(database)
    campaign = campaigns.create(f"load {uuid.uuid4().hex[:8]}", settings, "Be fair.")
    rng = random.Random(options.seed)
    campaigns.add_tasks(campaign.id, (made_up(n, rng) for n in range(options.tasks)))
    return campaign.name


class Crowd:
    """The annotators of one process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.database = open_database(options.database)
        campaign = Campaigns(self.database).get(options.worker)
        assert campaign is not None
        self.campaign_id = campaign.id
        self.stop, self.out = threading.Event(), threading.Lock()

    def run(self) -> None:
        people = [
            People(self.database).add(f"load {n}", "person") for n in range(self.options.annotators)
        ]
        threads = [threading.Thread(target=self.annotate, args=(p.id,)) for p in people]
        self.say({"ready": True})
        for thread in threads:
            thread.start()
        while self.tell_failures(threads):
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        self.say({"cpu": time.process_time()})

    def tell_failures(self, threads: list[threading.Thread]) -> bool:
        return any(thread.is_alive() for thread in threads) and not self.stop.is_set()

    def annotate(self, annotator_id: str) -> None:
        rng = random.Random()
        queue, work = Queue(self.database), Work(self.database)
        # They don't all come in the same moment.
        self.stop.wait(rng.uniform(0, self.options.think))
        while not self.stop.is_set():
            try:
                began = time.perf_counter()
                given = queue.next(annotator_id, self.campaign_id)
                asked = time.perf_counter() - began
                if given is None:
                    self.say({"error": "no tasks are left: give more --tasks"})
                    return
                self.stop.wait(rng.expovariate(1 / self.options.think))
                answers = len(given.task.new.completions)
                said = Submission(
                    uuid.uuid4().hex,
                    rng.sample(range(1, answers + 1), answers),
                    ratings=[rng.randint(1, 7) for _ in range(answers)],
                    seconds=self.options.think,
                )
                began = time.perf_counter()
                label = work.submit(given.id, annotator_id, said)
                self.say({"label": label.id, "next": asked, "submit": time.perf_counter() - began})
            except Exception as error:
                self.say({"error": f"{type(error).__name__}: {error}"})
                raise

    def say(self, what: dict[str, Any]) -> None:
        with self.out:
            print(json.dumps(what), flush=True)


class Runs:
    """The crowd's process, started again each time it is killed, and what it said."""

    def __init__(self, options: argparse.Namespace, campaign: str) -> None:
        self.options = options
        self.campaign = campaign
        self.said: list[dict[str, Any]] = []
        self.ready = threading.Event()

    def drive(self) -> None:
        # A process counts from when it is ready: on a busy machine that takes a while.
        part = self.options.seconds / (self.options.kills + 1)
        for end in [signal.SIGKILL] * self.options.kills + [signal.SIGTERM]:
            process, reader = self.start()
            time.sleep(part)
            process.send_signal(end)
            process.wait()
            reader.join()

    def start(self) -> tuple[subprocess.Popen[str], threading.Thread]:
        command = [sys.executable, __file__, "--worker", self.campaign]
        for name in ("database", "annotators", "think", "seed"):
            command += [f"--{name}", str(getattr(self.options, name))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        reader = threading.Thread(target=self.listen, args=(process.stdout,))
        self.ready.clear()
        reader.start()
        assert self.ready.wait(120), "the annotators' process does not start"
        return process, reader

    def listen(self, lines: Any) -> None:
        for line in lines:
            # The last line of a killed process may be cut off.
            if line.endswith("\n"):
                self.said.append(json.loads(line))
                if "ready" in self.said[-1]:
                    self.ready.set()


def check(database: Database, campaign: str, said: list[dict[str, Any]], most: int) -> list[str]:
    """Return what is wrong with what the database holds.

    Args:
        database: where the labels are.
        campaign: its name.
        said: what the crowd said.
        most: labels that may be there without having been acknowledged.
    """
    found = Campaigns(database).get(campaign)
    assert found is not None
    rows = list(Work(database).labels(found.id, revisions="all"))
    stored = Counter(row.label.id for row in rows)
    acknowledged = [line["label"] for line in said if "label" in line]
    problems = [line["error"] for line in said if "error" in line]
    if not acknowledged:
        problems.append("no label was acknowledged, so nothing was tried")
    lost = [label for label in acknowledged if stored[label] != 1]
    if lost:
        problems.append(f"{len(lost)} acknowledged labels are lost, the first {lost[0]}")
    if not len(acknowledged) <= len(stored) <= len(acknowledged) + most:
        problems.append(f"{len(stored)} labels are stored, {len(acknowledged)} were acknowledged")
    each = Counter((r.assignment.task.id, r.annotator.id, r.assignment.purpose) for r in rows)
    if each and max(each.values()) > 1:
        problems.append("a task was labelled twice by one annotator")
    progress = Campaigns(database).progress(found.id)
    takers = Counter(r.assignment.task.id for r in rows if r.assignment.purpose == "label")
    if takers and max(takers.values()) > found.settings.annotators_per_task:
        problems.append("a task has more labels than wanted")
    if progress.labels != sum(takers.values()):
        problems.append(f"the progress says {progress.labels} labels of {sum(takers.values())}")
    return problems


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    chosen = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values)}
    return {name: round(1000 * value, 1) for name, value in chosen.items()}


def main() -> None:
    options = arguments()
    if options.worker:
        crowd = Crowd(options)
        signal.signal(signal.SIGTERM, lambda *_: crowd.stop.set())
        crowd.run()
        return
    with tempfile.TemporaryDirectory() as folder:
        options.database = options.database or f"sqlite:///{Path(folder) / 'labels.sqlite'}"
        database = open_database(options.database)
        campaign = prepare(database, options)
        load = os.getloadavg()[0]
        runs = Runs(options, campaign)
        runs.drive()
        problems = check(database, campaign, runs.said, options.kills * options.annotators)
        database.close()
    labels = [line for line in runs.said if "label" in line]
    report: dict[str, Any] = {
        "database": options.database.split(":")[0],
        "annotators": options.annotators,
        "seconds": options.seconds,
        "kills": options.kills,
        "acknowledged": len(labels),
        "per_second": round(len(labels) / options.seconds, 1),
        "load_before": round(load, 1),
        "cpu_seconds": round(sum(line.get("cpu", 0.0) for line in runs.said), 1),
        "problems": problems,
    }
    for step in ("next", "submit"):
        if len(labels) > 1:
            report[f"{step}_ms"] = quantiles([line[step] for line in labels])
    print(json.dumps(report, indent=2))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
