"""The store as an annotator and a researcher meet it, the same on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from data.errors import InvalidLabelError, LabelConflictError, NotYoursError, UsageError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import Campaign, CampaignSettings, NewTask, Submission
from data.labels.store.database import Database


class Store:
    def __init__(self, database: Database, clock: Any) -> None:
        self.campaigns, self.accounts = Campaigns(database), Accounts(database)
        self.queue, self.submissions = Queue(database), Submissions(database)
        self.clock = clock

    def campaign(self, tasks: int = 3, gold: int = 0, **settings: Any) -> Campaign:
        chosen: dict[str, Any] = {"mode": "rank", "overlap": 0.0, **settings}
        campaign = self.campaigns.create("ranking", CampaignSettings(**chosen), "Be fair.")
        new = [NewTask(f"t{n}", f"prompt {n}", ["a", "b", "c"]) for n in range(tasks)]
        new += [
            NewTask(f"g{n}", f"gold {n}", ["a", "b"], gold_ranks=[1, 2], gold_note="a is right")
            for n in range(gold)
        ]
        assert self.campaigns.add_tasks(campaign.id, new) == tasks + gold
        return campaign

    def person(self, name: str = "Ada") -> str:
        return self.accounts.add(name, "person").id

    def label(self, person: str, campaign: Campaign, ranks: list[int] | None = None) -> Any:
        given = self.queue.next(person, campaign.id)
        assert given is not None
        ranks = ranks or list(range(1, len(given.task.new.completions) + 1))
        said = Submission(f"key {given.id}", ranks)
        return given, self.submissions.submit(given.id, person, said)


@pytest.fixture
def store(database: Database, clock: Any) -> Store:
    return Store(database, clock)


def test_a_task_is_given_labelled_and_read_back(store: Store) -> None:
    campaign, ada = store.campaign(tasks=1), store.person()
    given = store.queue.next(ada, campaign.id)
    assert given is not None
    assert given.task.new == NewTask("t0", "prompt 0", ["a", "b", "c"])
    assert sorted(given.order) == [0, 1, 2]
    assert (given.purpose, given.strategy, given.probability) == ("label", "random", 1.0)
    said = Submission("k", [1, 1, 2], comment="nul \x00 and \ud800", seconds=2.5)
    label = store.submissions.submit(given.id, ada, said)
    [row] = store.submissions.labels(campaign.id)
    assert row.label == label and row.label.submission == said
    assert row.assignment.order == given.order
    assert (row.annotator.name, row.campaign, row.mode) == ("Ada", "ranking", "rank")
    assert store.queue.next(ada, campaign.id) is None
    progress = store.campaigns.progress(campaign.id)
    assert (progress.tasks, progress.labelled, progress.complete) == (1, 1, 1)
    assert (progress.labels, progress.wanted, progress.annotators) == (1, 1, 1)


def test_the_open_task_comes_again_until_it_is_done(store: Store) -> None:
    campaign, ada = store.campaign(), store.person()
    first = store.queue.next(ada, campaign.id)
    assert store.queue.next(ada, campaign.id) == first


def test_one_task_is_not_given_to_two(store: Store) -> None:
    campaign = store.campaign(tasks=1)
    assert store.queue.next(store.person("Ada"), campaign.id) is not None
    assert store.queue.next(store.person("Bob"), campaign.id) is None


def test_overlap_gives_a_task_to_as_many_as_asked(store: Store) -> None:
    campaign = store.campaign(tasks=2, overlap=1.0, annotators_per_task=2)
    for name in ("Ada", "Bob"):
        person = store.person(name)
        store.label(person, campaign)
        store.label(person, campaign)
        assert store.queue.next(person, campaign.id) is None
    assert store.queue.next(store.person("Cem"), campaign.id) is None
    progress = store.campaigns.progress(campaign.id)
    assert (progress.complete, progress.labels, progress.wanted) == (2, 4, 4)


def test_answers_are_shuffled_for_each_person_anew(store: Store) -> None:
    campaign = store.campaign(tasks=20, overlap=1.0, annotators_per_task=2)
    shown: list[dict[str, tuple[int, ...]]] = []
    for name in ("Ada", "Bob"):
        person = store.person(name)
        given = [store.label(person, campaign)[0] for _ in range(20)]
        shown.append({one.task.new.key: tuple(one.order) for one in given})
    ada, bob = shown
    # By chance alone, 20 draws of six orders give fewer in one run of 100 million.
    assert len(set(ada.values())) >= 3 and len(set(bob.values())) >= 3
    assert all(sorted(order) == [0, 1, 2] for order in ada.values())
    assert sum(ada[task] != bob[task] for task in ada) >= 5


def test_a_lease_that_ran_out_is_taken_over_and_the_late_label_refused(store: Store) -> None:
    campaign, ada, bob = store.campaign(tasks=1), store.person("Ada"), store.person("Bob")
    late = store.queue.next(ada, campaign.id)
    store.clock.move(1801)
    taken = store.queue.next(bob, campaign.id)
    assert late is not None and taken is not None and taken.task.id == late.task.id
    with pytest.raises(LabelConflictError, match="somebody else"):
        store.submissions.submit(late.id, ada, Submission("k", [1, 2, 3]))
    store.submissions.submit(taken.id, bob, Submission("k", [1, 2, 3]))
    assert len(list(store.submissions.labels(campaign.id))) == 1


def test_a_late_label_counts_where_nobody_took_over(store: Store) -> None:
    campaign, ada = store.campaign(tasks=1), store.person("Ada")
    late = store.queue.next(ada, campaign.id)
    assert late is not None
    store.clock.move(1801)
    assert store.queue.return_expired(campaign.id) == 1
    store.submissions.submit(late.id, ada, Submission("k", [1, 2, 3]))
    assert store.queue.next(store.person("Bob"), campaign.id) is None
    assert store.campaigns.progress(campaign.id).labels == 1


def test_who_comes_back_late_gets_the_same_order_and_draft(store: Store) -> None:
    campaign, ada = store.campaign(tasks=3), store.person("Ada")
    before = store.queue.next(ada, campaign.id)
    assert before is not None
    store.submissions.save_draft(before.id, ada, {"ranks": [1, None, None]})
    store.submissions.save_draft(before.id, ada, {"ranks": [1, 2, None]})
    store.clock.move(1801)
    store.queue.return_expired(campaign.id)
    after = store.queue.next(ada, campaign.id)
    assert after is not None and (after.id, after.order) == (before.id, before.order)
    assert after.leased_until > before.leased_until
    assert store.submissions.draft(after.id, ada) == {"ranks": [1, 2, None]}


def test_submitting_twice_stores_once_and_a_second_label_is_refused(store: Store) -> None:
    campaign, ada = store.campaign(), store.person()
    given, label = store.label(ada, campaign)
    same = Submission(f"key {given.id}", [1, 2, 3], seconds=9.0)
    assert store.submissions.submit(given.id, ada, same) == label
    with pytest.raises(LabelConflictError, match="same key"):
        store.submissions.submit(given.id, ada, Submission(same.key, [3, 2, 1]))
    with pytest.raises(LabelConflictError, match="already"):
        store.submissions.submit(given.id, ada, Submission("another", [1, 2, 3]))
    assert len(list(store.submissions.labels(campaign.id, revisions="all"))) == 1


def test_a_revision_is_added_and_nothing_is_lost(store: Store) -> None:
    campaign, ada = store.campaign(), store.person()
    _, label = store.label(ada, campaign, [1, 2, 3])
    better = store.submissions.revise(label.id, ada, Submission("again", [2, 1, 1]))
    assert store.submissions.revise(label.id, ada, Submission("again", [2, 1, 1])) == better
    assert better.revision == 2
    every = list(store.submissions.labels(campaign.id, revisions="all"))
    assert [row.label.submission.ranks for row in every] == [[1, 2, 3], [2, 1, 1]]
    assert [row.label for row in store.submissions.labels(campaign.id)] == [better]
    assert [row.label for row in store.submissions.mine(ada, campaign.id, 5)] == [better]


def test_only_the_last_20_labels_are_revised(store: Store) -> None:
    campaign, ada = store.campaign(tasks=21), store.person()
    labels = [store.label(ada, campaign)[1] for _ in range(21)]
    store.submissions.revise(labels[1].id, ada, Submission("r", [3, 2, 1]))
    with pytest.raises(LabelConflictError, match="last 20"):
        store.submissions.revise(labels[0].id, ada, Submission("r", [3, 2, 1]))


def test_what_is_another_persons_does_not_exist(store: Store) -> None:
    campaign, ada, eve = store.campaign(tasks=1), store.person("Ada"), store.person("Eve")
    given = store.queue.next(ada, campaign.id)
    assert given is not None
    store.submissions.save_draft(given.id, ada, {"ranks": [1]})
    assert store.queue.assignment(given.id, eve) is None
    assert store.submissions.draft(given.id, eve) is None
    said = Submission("k", [1, 2, 3])
    for attempt in (
        lambda: store.submissions.submit(given.id, eve, said),
        lambda: store.submissions.skip(given.id, eve, "other"),
        lambda: store.submissions.save_draft(given.id, eve, {}),
        lambda: store.queue.release(given.id, eve),
        lambda: store.queue.extend(given.id, eve),
    ):
        with pytest.raises(NotYoursError):
            attempt()
    label = store.submissions.submit(given.id, ada, said)
    with pytest.raises(NotYoursError):
        store.submissions.revise(label.id, eve, Submission("x", [3, 2, 1]))


def test_a_skipped_task_goes_to_somebody_else(store: Store) -> None:
    campaign, ada, bob = store.campaign(tasks=1), store.person("Ada"), store.person("Bob")
    given = store.queue.next(ada, campaign.id)
    assert given is not None
    with pytest.raises(InvalidLabelError, match="no reason"):
        store.submissions.skip(given.id, ada, "bored")
    store.submissions.skip(given.id, ada, "expertise")
    store.submissions.skip(given.id, ada, "expertise")
    assert store.queue.next(ada, campaign.id) is None
    assert store.queue.next(bob, campaign.id) is not None
    [skip] = store.submissions.skips(campaign.id)
    assert (skip.annotator.name, skip.reason, skip.assignment.id) == ("Ada", "expertise", given.id)


def test_the_qualification_comes_first_tells_the_answer_and_can_be_failed(store: Store) -> None:
    campaign = store.campaign(tasks=1, gold=3, qualification_tasks=2, qualification_share=0.6)
    ada = store.person("Ada")
    first, wrong = store.label(ada, campaign, [2, 1])
    assert first.purpose == "qualification"
    told = store.submissions.gold_feedback(wrong)
    assert told is not None
    assert (told.agreed, told.pairs, told.gold_ranks, told.note) == (0, 1, [1, 2], "a is right")
    with pytest.raises(LabelConflictError, match="qualification"):
        store.submissions.revise(wrong.id, ada, Submission("r", [1, 2]))
    store.label(ada, campaign, [1, 2])
    status = store.queue.qualification(ada, campaign.id)
    assert (status.done, status.agreed, status.pairs, status.passed) == (2, 1, 2, False)
    store.label(ada, campaign, [1, 2])
    assert store.queue.qualification(ada, campaign.id).passed
    assert store.label(ada, campaign)[0].purpose == "label"
    bob = store.person("Bob")
    for _ in range(3):
        store.label(bob, campaign, [1, 1])
    assert store.queue.next(bob, campaign.id) is None
    assert store.queue.qualification(bob, campaign.id).failed


def test_gold_and_repeats_come_with_their_share(store: Store) -> None:
    campaign = store.campaign(tasks=30, gold=20, gold_share=0.2, repeat_share=0.2)
    ada = store.person("Ada")
    purposes = []
    while store.queue.next(ada, campaign.id) is not None:
        given, label = store.label(ada, campaign)
        purposes.append(given.purpose)
        assert store.submissions.gold_feedback(label) is None
    assert purposes.count("label") == 30
    # About 50 draws at 0.2 each: 10 with a standard deviation of 3.
    assert 2 <= purposes.count("gold") <= 20
    assert 2 <= purposes.count("repeat") <= 20
    repeats = [r for r in store.submissions.labels(campaign.id) if r.assignment.purpose == "repeat"]
    assert len({r.assignment.task.id for r in repeats}) == len(repeats)
    assert store.campaigns.progress(campaign.id).labels == 30


def test_tasks_are_stored_once_and_campaigns_found_again(store: Store) -> None:
    campaign = store.campaign(tasks=2)
    assert store.campaigns.add_tasks(campaign.id, [NewTask("t0", "other", ["x", "y"])]) == 0
    same = store.campaigns.create("ranking", campaign.settings, "Be fair.")
    assert same == campaign == store.campaigns.get("ranking")
    newer = store.campaigns.create("ranking", campaign.settings, "Be kind.")
    assert (newer.id, newer.guidelines_version) == (campaign.id, 2)
    assert store.campaigns.list() == [newer]
    with pytest.raises(UsageError, match=r"begun with overlap 0\.0, now it is 0\.5"):
        store.campaigns.create("ranking", CampaignSettings(mode="rank", overlap=0.5), "Be fair.")


def test_pairs_are_of_two_completions(store: Store) -> None:
    made = store.campaigns.create("duel", CampaignSettings(mode="pairs", overlap=0.0), "")
    store.campaigns.add_tasks(made.id, [NewTask("two", "p", ["a", "b"])])
    for gold in (None, [1, 2, 2]):
        three = NewTask("three", "p", ["a", "b", "c"], gold_ranks=gold)
        with pytest.raises(UsageError, match=r"'three': mode pairs compares 2 completions, not 3"):
            store.campaigns.add_tasks(made.id, [three])
    assert store.campaigns.progress(made.id).tasks == 1


def test_a_closed_campaign_takes_what_is_out_and_gives_nothing(store: Store) -> None:
    campaign, ada = store.campaign(), store.person()
    given = store.queue.next(ada, campaign.id)
    store.campaigns.close(campaign.id)
    assert given is not None and store.queue.next(ada, campaign.id) == given
    store.label(ada, campaign)
    assert store.queue.next(ada, campaign.id) is None


def test_a_label_that_is_not_asked_is_refused(store: Store) -> None:
    campaign, ada = store.campaign(), store.person()
    given = store.queue.next(ada, campaign.id)
    assert given is not None
    with pytest.raises(InvalidLabelError, match="not 3 dense ranks"):
        store.submissions.submit(given.id, ada, Submission("k", [1, 3, 3]))
    assert not list(store.submissions.labels(campaign.id))
