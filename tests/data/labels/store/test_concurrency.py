"""Many annotators at once, in threads and processes; and processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.submissions import Submissions
from data.labels.records import CampaignSettings, NewTask
from data.labels.store.database import open_database

WORKER = Path(__file__).with_name("annotate.py")
ROOT = Path(__file__).parents[4]


def start(url: str, prefix: str, threads: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), url, "crowd", prefix, str(threads)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def crowd(url: str, tasks: int, **settings: Any) -> str:
    database = open_database(url)
    campaigns = Campaigns(database)
    campaign = campaigns.create("crowd", CampaignSettings(mode="rank", **settings), "")
    campaigns.add_tasks(campaign.id, (NewTask(str(n), "p", ["a", "b"]) for n in range(tasks)))
    database.close()
    return campaign.id


def test_two_processes_with_four_annotators_each_share_the_work(url: str) -> None:
    campaign_id = crowd(url, 40, overlap=0.5, annotators_per_task=2)
    processes = [start(url, prefix, 4) for prefix in "AB"]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    acknowledged = [line for out, _ in results for line in out.split()]
    database = open_database(url)
    rows = list(Submissions(database).labels(campaign_id, revisions="all"))
    progress = Campaigns(database).progress(campaign_id)
    database.close()
    assert sorted(acknowledged) == sorted(row.label.id for row in rows)
    assert progress.complete == progress.tasks == 40
    assert progress.labels == progress.wanted == len(rows) > 40
    each = Counter((row.assignment.task.id, row.annotator.id) for row in rows)
    assert set(each.values()) == {1}


def test_what_was_acknowledged_before_kill_9_is_there(url: str) -> None:
    campaign_id = crowd(url, 2000, overlap=0.0)
    process = start(url, "A", 4)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(12)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    # The last line may be cut off.
    acknowledged += rest.splitlines(keepends=True)
    acknowledged = [line.strip() for line in acknowledged if line.endswith("\n")]
    database = open_database(url)
    stored = Counter(row.label.id for row in Submissions(database).labels(campaign_id))
    progress = Campaigns(database).progress(campaign_id)
    database.close()
    assert len(acknowledged) >= 12
    assert all(stored[label] == 1 for label in acknowledged)
    # Of the labels on their way, one a thread, each is there whole or not at all.
    assert len(acknowledged) <= len(stored) <= len(acknowledged) + 4
    assert progress.labels == progress.labelled == len(stored)
