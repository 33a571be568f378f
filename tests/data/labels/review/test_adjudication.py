"""An admin's word on a comparison, on both databases: what it changes, and what stays."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from data.errors import InvalidLabelError, LabelConflictError, NotYoursError
from data.labels.agreement.statistics import label_statistics
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.label_filter import labels_of
from data.labels.campaign.queue import Queue
from data.labels.campaign.recording import Recording
from data.labels.campaign.submissions import Submissions
from data.labels.exchange.exporting import ExportSettings, export_parts
from data.labels.exchange.rankings_file import from_row
from data.labels.records import CampaignSettings, LabelRow, NewTask, Submission
from data.labels.review.adjudication import Adjudication
from data.labels.review.comparisons import Comparisons, Wanted
from data.labels.store import tables
from data.labels.store.database import Database, open_database
from data.labels.web import own


class Room:
    """Two tasks that Ada and Bo ranked, the first one differently, and two admins."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.campaigns, self.submissions = Campaigns(database), Submissions(database)
        self.queue, self.adjudication = Queue(database), Adjudication(database)
        self.comparisons = Comparisons(database)
        asked = CampaignSettings(mode="rank", overlap=1.0, annotators_per_task=3)
        self.id = self.campaigns.create("c", asked, "").id
        new = [NewTask(f"t{n}", f"prompt {n}", ["x", "y"], ["sft", "ppo"]) for n in range(2)]
        self.campaigns.add_tasks(self.id, new)
        accounts = Accounts(database)
        self.ada, self.bo, self.root, self.eve = (
            accounts.add(name, "person").id for name in ("Ada", "Bo", "Root", "Eve")
        )
        self.tasks: dict[str, str] = {}
        for who in (self.ada, self.bo):
            for _ in range(2):
                given = self.queue.next(who, self.id)
                assert given is not None
                key = given.task.new.key
                self.tasks[key] = given.task.id
                ranks = [2, 1] if (key, who) == ("t0", self.bo) else [1, 2]
                said = Submission(f"{key} {who}", ranks, comment="why" if who == self.bo else "")
                self.submissions.submit(given.id, who, said)

    def decide(self, who: str, ranks: list[int], instead_of: str = "", key: str = "k") -> str:
        said = Submission(key + who, ranks)
        return self.adjudication.decide(self.tasks["t0"], who, said, instead_of=instead_of).id

    def rows(self) -> list[LabelRow]:
        return list(self.submissions.labels(self.id))

    def trained_on(self) -> list[tuple[str, list[int]]]:
        """Key and ranks of what a reward model would learn."""
        found = [
            (row.assignment.task.new.key, row.label.submission.ranks)
            for row in labels_of(self.rows())
        ]
        return sorted(found)


@pytest.fixture
def room(database: Database) -> Room:
    return Room(database)


BEFORE = [("t0", [1, 2]), ("t0", [2, 1]), ("t1", [1, 2]), ("t1", [1, 2])]
AFTER = [("t0", [1, 1]), ("t1", [1, 2]), ("t1", [1, 2])]


def test_a_word_takes_the_place_of_all_labels_until_it_is_taken_back(room: Room) -> None:
    figures = label_statistics(room.rows())
    assert room.trained_on() == BEFORE
    label = room.decide(room.root, [1, 1])
    assert room.trained_on() == AFTER
    assert len(room.rows()) == 5  # what the annotators said is there
    now = label_statistics(room.rows())
    assert (now.adjudicated, now.whole, now.annotators) == (1, figures.whole, figures.annotators)

    pairs, left_out = export_parts(room.rows(), ExportSettings("preferences"))
    assert (len(pairs["preferences/train.jsonl"]), [*left_out.values()]) == (2, [1])
    table, _ = export_parts(room.rows(), ExportSettings("csv"))
    assert "".join(table["labels.csv"]).count('"adjudication"') == 2  # a line an answer
    parts, _ = export_parts(room.rows(), ExportSettings("rankings"))
    rows = [json.loads(line) for line in parts["rankings.jsonl"]]
    marks = {row["meta"]["_label"]["assignment"]["purpose"] for row in rows if row["id"] == label}
    assert (len(rows), marks) == (3, {"adjudication"})
    soft, _ = export_parts(room.rows(), ExportSettings("rankings", consolidation="soft"))
    (decided,) = [
        row for row in map(json.loads, soft["rankings.jsonl"]) if row["prompt"] == "prompt 0"
    ]
    assert decided["probabilities"] == [[0.5, 0.5], [0.5, 0.5]]

    room.adjudication.undo(room.tasks["t0"], room.eve, label_id=label)
    room.adjudication.undo(room.tasks["t0"], room.eve, label_id=label)  # sent twice
    assert room.trained_on() == BEFORE
    _, said = room.comparisons.said(room.id, room.tasks["t0"])
    assert [(one.row.annotator.name, one.counts) for one in said] == [
        ("Ada", True), ("Bo", True), ("Root", False),
    ]  # fmt: skip
    # After it was taken back, the same admin may decide again.
    room.decide(room.root, [2, 1], key="again")
    assert room.trained_on()[0] == ("t0", [2, 1]) and len(room.trained_on()) == 3


def test_whose_labels_are_asked_for_decides_whether_a_word_is_among_them(
    label: Callable[..., LabelRow],
) -> None:
    by_gold, word = label("t", "gold", [1, 2]), label("t", "root", [2, 1], purpose="adjudication")
    by_gold = dataclasses.replace(
        by_gold, annotator=dataclasses.replace(by_gold.annotator, kind="gold")
    )
    assert labels_of([by_gold, word]) == [word]
    assert labels_of([by_gold, word], kinds=["gold"]) == [by_gold]
    assert labels_of([by_gold, word], adjudicated=False) == [by_gold]
    for everything in ({"purposes": None}, {"revisions": "all"}):
        chosen: Any = everything
        assert labels_of([by_gold, word], **chosen) == [by_gold, word]
    assert labels_of([by_gold, word], purposes=["gold"]) == []


def test_of_two_admins_the_second_is_told_and_a_word_sent_twice_counts_once(room: Room) -> None:
    first = room.decide(room.root, [1, 1])
    assert room.decide(room.root, [1, 1]) == first
    with pytest.raises(LabelConflictError, match="another admin decided this comparison meanwhile"):
        room.decide(room.eve, [2, 1])
    with pytest.raises(LabelConflictError, match="meanwhile"):
        room.adjudication.undo(room.tasks["t0"], room.eve, label_id="another")
    second = room.decide(room.eve, [2, 1], instead_of=first)
    third = room.decide(room.eve, [1, 2], instead_of=second, key="more")
    assert room.trained_on()[0] == ("t0", [1, 2]) and len(room.trained_on()) == 3
    _, said = room.comparisons.said(room.id, room.tasks["t0"])
    last = [(one.row.label.id, one.row.label.revision, one.counts) for one in said[2:]]
    assert last == [(first, 1, False), (second, 1, False), (third, 2, True)]


def test_many_admins_at_once_leave_one_word(room: Room) -> None:
    admins = [Accounts(room.database).add(f"admin {n}", "person").id for n in range(6)]
    told: list[str] = []

    def act(who: str) -> None:
        try:
            told.append(room.decide(who, [1, 1]))
        except LabelConflictError:
            told.append("")

    threads = [threading.Thread(target=act, args=(who,)) for who in admins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 6 and told.count("") == 5
    assert room.trained_on() == AFTER


def test_the_database_itself_lets_one_word_stand(room: Room) -> None:
    room.decide(room.root, [1, 1])
    given = tables.assignments
    with room.database.read() as connection:
        row = connection.execute(given.select().where(given.c.state == "adjudicated")).one()
    again = dict(row._mapping) | {"id": "x", "annotator_id": room.eve}
    with pytest.raises(sa.exc.IntegrityError), room.database.write() as connection:
        connection.execute(given.insert().values(**again))


def test_what_can_not_be_decided_is_told(room: Room) -> None:
    with pytest.raises(InvalidLabelError, match="dense ranks"):
        room.decide(room.root, [1, 2, 3])
    with pytest.raises(NotYoursError, match="no such comparison"):
        room.adjudication.decide("none", room.root, Submission("k", [1, 2]), instead_of="")
    room.campaigns.add_tasks(room.id, [NewTask("new", "p", ["a", "b"])])
    with room.database.read() as connection:
        new = connection.scalar(sa.select(tables.tasks.c.id).where(tables.tasks.c.key == "new"))
    with pytest.raises(LabelConflictError, match="nothing that could train"):
        room.adjudication.decide(str(new), room.root, Submission("k", [1, 2]), instead_of="")
    assert room.trained_on() == BEFORE


def test_it_is_no_work_of_an_annotator(room: Room) -> None:
    room.decide(room.root, [1, 1])
    assert own.pace(room.database, room.root, room.id).done == 0
    assert room.submissions.mine(room.root, room.id, 20) == []
    with room.database.read() as connection:
        given = tables.assignments.c
        place = connection.scalar(sa.select(given.id).where(given.state == "adjudicated"))
    assert place is not None
    assert room.queue.given(place, room.root) is None
    with pytest.raises(NotYoursError):
        room.submissions.submit(place, room.root, Submission("other", [1, 2]))
    # Who decided a task has seen what others said of it, and does not label it.
    next_one = room.queue.next(room.root, room.id)
    assert next_one is not None and next_one.task.new.key == "t1"


def test_an_export_of_everything_brings_both_into_another_database(
    room: Room, tmp_path: Path
) -> None:
    label = room.decide(room.root, [1, 1])
    rows = list(room.submissions.labels(room.id, revisions="all"))
    parts, _ = export_parts(rows, ExportSettings("rankings", purposes=None, revisions="all"))
    read = [from_row(json.loads(line)) for line in parts["rankings.jsonl"]]
    there = open_database(str(tmp_path / "there.sqlite"))
    made = Campaigns(there).create("c", CampaignSettings(mode="rank", overlap=0.0), "")
    assert Recording(there).record(made.id, read) == 5
    assert Recording(there).record(made.id, read) == 0
    found = labels_of(Submissions(there).labels(made.id))
    assert sorted((r.assignment.task.new.key, r.label.submission.ranks) for r in found) == AFTER
    # Here another admin decided meanwhile: what is there stays.
    again = open_database(str(tmp_path / "again.sqlite"))
    made = Campaigns(again).create("c", CampaignSettings(mode="rank", overlap=0.0), "")
    Recording(again).record(made.id, [row for row in read if row.label.id != label])
    listed = Comparisons(again).find(made.id, Wanted(disagreement=True)).shown
    admin = Accounts(again).add("Other", "person").id
    said = Submission("k", [2, 1])
    Adjudication(again).decide(listed[0].task_id, admin, said, instead_of="")
    assert Recording(again).record(made.id, read) == 0
    found = labels_of(Submissions(again).labels(made.id))
    assert [2, 1] in [row.label.submission.ranks for row in found] and len(found) == 3
    there.close()
    again.close()


def test_the_list_finds_what_is_looked_for(room: Room) -> None:
    def keys(**wanted: Any) -> list[str]:
        listed = room.comparisons.find(room.id, Wanted(**wanted)).shown
        names = {task: key for key, task in room.tasks.items()}
        return sorted(names[one.task_id] for one in listed)

    assert keys() == ["t0", "t1"]
    assert keys(disagreement=True) == ["t0"]
    assert keys(annotator=room.ada) == ["t0", "t1"] == keys(annotator=room.bo, comment=True)
    assert keys(annotator=room.ada, comment=True) == []  # of one label, not of two
    assert keys(flag="opinion") == [] == keys(annotator=room.root)
    assert keys(adjudicated="no") == ["t0", "t1"] and keys(adjudicated="yes") == []
    room.decide(room.root, [1, 1])
    assert keys(adjudicated="no") == ["t1"] and keys(adjudicated="yes") == ["t0"]
    assert keys(disagreement=True, adjudicated="no") == []
    listing = room.comparisons.find(room.id, Wanted(), page=9)
    assert (listing.found, listing.page, listing.pages) == (2, 1, 1)
    told = {one.prompt: one for one in listing.shown}
    one = told["prompt 0"]
    facts = (one.labels, one.people, one.differ, one.comments, one.adjudicated)
    assert facts == (2, ["Ada", "Bo"], True, 1, True)
    assert [one.name for one in room.comparisons.annotators(room.id)] == ["Ada", "Bo", "Root"]
    first, second = (one.task_id for one in listing.shown)
    assert room.comparisons.neighbours(room.id, Wanted(), first) == (None, second)
    assert room.comparisons.neighbours(room.id, Wanted(), second) == (first, None)
    # What is not in the list any more still has its place there.
    left = room.comparisons.neighbours(room.id, Wanted(adjudicated="no"), room.tasks["t0"])
    assert set(left) == {None, room.tasks["t1"]}
