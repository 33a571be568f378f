"""Labels of elsewhere come in whole, once, and in any number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import InvalidLabelError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.recording import Recording
from data.labels.campaign.submissions import Submissions
from data.labels.records import CampaignSettings, NewTask, Submission
from data.labels.store.database import Database, open_database


def labelled(path: Path) -> Database:
    database = open_database(str(path))
    campaign = Campaigns(database).create("c", CampaignSettings(mode="rank", overlap=1.0), "")
    Campaigns(database).add_tasks(
        campaign.id, [NewTask(k, k, ["a", "b"], meta={"k": k}) for k in "xyz"]
    )
    for name in ("Ada", "Bob"):
        person = Accounts(database).add(name, "person").id
        given = Queue(database).next(person, campaign.id)
        assert given is not None
        label = Submissions(database).submit(given.id, person, Submission("k", [2, 1], seconds=1.5))
        Submissions(database).revise(label.id, person, Submission("k2", [1, 1], comment=name))
    return database


def test_a_round_trip_keeps_ids_orders_times_and_revisions(
    database: Database, tmp_path: Path
) -> None:
    source = labelled(tmp_path / "source.sqlite")
    before = Campaigns(source).get("c")
    assert before is not None
    rows = list(Submissions(source).labels(before.id, revisions="all"))
    source.close()
    campaign = Campaigns(database).create("c", CampaignSettings(mode="rank", overlap=1.0), "")
    recording = Recording(database)
    assert recording.record(campaign.id, rows) == 4
    assert recording.record(campaign.id, rows) == 0
    again = list(Submissions(database).labels(campaign.id, revisions="all"))
    assert [row.label for row in again] == [row.label for row in rows]
    for old, new in zip(rows, again, strict=True):
        a, b = old.assignment, new.assignment
        assert (b.id, b.order, b.probability, b.task.new) == (
            a.id,
            a.order,
            a.probability,
            a.task.new,
        )
        assert new.annotator.name == old.annotator.name
    progress = Campaigns(database).progress(campaign.id)
    assert (progress.labels, progress.annotators) == (2, 2)
    # Ada has labelled one of the tasks: she is not asked for it again.
    ada = Accounts(database).add("Ada", "person").id
    given = Queue(database).next(ada, campaign.id)
    [hers] = {row.assignment.task.new.key for row in again if row.annotator.name == "Ada"}
    assert given is not None and given.task.new.key != hers


def test_a_label_that_is_none_is_named(database: Database, tmp_path: Path) -> None:
    source = labelled(tmp_path / "source.sqlite")
    before = Campaigns(source).get("c")
    assert before is not None
    row = next(Submissions(source).labels(before.id))
    source.close()
    campaign = Campaigns(database).create("c", CampaignSettings(mode="rank"), "")
    wrong = replace(row, label=replace(row.label, submission=Submission("k", [1, 3])))
    with pytest.raises(InvalidLabelError, match="not 2 dense ranks"):
        Recording(database).record(campaign.id, [wrong])
    wrong = replace(row, assignment=replace(row.assignment, order=[0, 0]))
    with pytest.raises(InvalidLabelError, match="order"):
        Recording(database).record(campaign.id, [wrong])
    assert list(Submissions(database).labels(campaign.id)) == []
