"""Conversations as an annotator and a worker make them, the same on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from data.errors import InvalidLabelError, LabelConflictError, NotYoursError, UsageError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.submissions import Submissions
from data.labels.exchange.exporting import ExportSettings, export_parts
from data.labels.live.conversations import Answers, Conversations
from data.labels.records import CampaignSettings, Submission
from data.labels.store.database import Database

KEY = "a key of the page {}"


class Talk:
    """Ada's conversations, and what a worker would do."""

    def __init__(self, database: Database, **settings: Any) -> None:
        chosen: dict[str, Any] = {"mode": "rank", "answers": 3, "most_turns": 3, **settings}
        self.campaigns = Campaigns(database)
        self.campaign = self.campaigns.create("live", CampaignSettings(**chosen), "")
        self.live, self.submissions = Conversations(database), Submissions(database)
        self.ada = Accounts(database).add("Ada", "person").id
        self.keys = 0

    def write(self, text: str, key: str = "") -> Any:
        self.keys += 1
        return self.live.write(self.ada, self.campaign.id, key or KEY.format(self.keys), text)

    def answer(self, *texts: str, tokens: int = 10) -> bool:
        """Answer the only message that waits."""
        [asked] = self.live.asked()
        policies = ["sft", "ppo", "sft"][: len(texts)]
        made = Answers(list(texts), policies, [True] * len(texts), tokens)
        return self.live.answer(asked.turn_id, made)

    @property
    def last(self) -> Any:
        now = self.live.current(self.ada, self.campaign.id)
        return now.last if now else None

    def rank(self, *ranks: int) -> None:
        given = self.last.assignment_id
        self.submissions.submit(given, self.ada, Submission(f"key {given}", list(ranks)))


@pytest.fixture
def talk(database: Database) -> Callable[..., Talk]:
    return lambda **settings: Talk(database, **settings)


def test_a_conversation_goes_on_with_the_answer_that_was_ranked_best(talk: Any) -> None:
    ada = talk()
    assert ada.live.current(ada.ada, ada.campaign.id) is None
    assert ada.write(" What is tea? ").state == "asked"
    [asked] = ada.live.asked()
    assert asked.messages == [{"role": "user", "content": "What is tea?"}] and asked.answers == 3
    assert ada.answer("A leaf.", "Hm.", "A bird.")
    assert ada.live.asked() == [] and ada.last.state == "answered"
    ada.rank(2, 3, 1)
    assert (ada.last.state, ada.last.answer) == ("ranked", "A bird.")
    ada.write("Sure?")
    said = [("user", "What is tea?"), ("assistant", "A bird."), ("user", "Sure?")]
    turns = [{"role": role, "content": text} for role, text in said]
    assert ada.live.asked()[0].messages == turns
    ada.answer("Yes.", "No.", "Well.")
    ada.rank(3, 1, 2)
    first, second = ada.submissions.labels(ada.campaign.id)
    assert second.assignment.task.new.prompt == turns
    assert second.assignment.task.new.policies == ["sft", "ppo", "sft"]
    assert sorted(second.assignment.order) == [0, 1, 2]
    talk_id = first.assignment.task.new.meta["conversation"]
    assert second.assignment.task.new.meta["conversation"] == talk_id
    # What was said stays said, whatever is thought of it later.
    ada.submissions.revise(first.label.id, ada.ada, Submission("later", [1, 2, 3]))
    now = ada.live.current(ada.ada, ada.campaign.id)
    assert [turn.answer for turn in now.turns] == ["A bird.", "No."]
    parts, _ = export_parts(ada.submissions.labels(ada.campaign.id), ExportSettings("hh"))
    assert "Assistant: A bird.\\n\\nHuman: Sure?\\n\\nAssistant: No." in "".join(*parts.values())
    progress = ada.campaigns.progress(ada.campaign.id)
    assert (progress.tasks, progress.complete, progress.labels, progress.wanted) == (2, 2, 2, 2)


def test_a_message_is_taken_once_and_answered_once(talk: Any) -> None:
    ada = talk()
    first = ada.write("Hello", key=KEY)
    assert ada.write("Hello", key=KEY) == first
    with pytest.raises(LabelConflictError, match="another message was sent"):
        ada.write("Hello!", key=KEY)
    with pytest.raises(LabelConflictError, match="no ranked answer yet"):
        ada.write("Are you there?")
    ada.answer("Hi.", "Yo.")
    with pytest.raises(LabelConflictError, match="no ranked answer yet"):
        ada.write("Well?")
    again = Answers(["Other.", "Ones."], ["sft", "ppo"], [True, True])
    assert not ada.live.answer(first.id, again)
    with pytest.raises(LabelConflictError, match="rank the answers first"):
        ada.live.end(ada.ada, ada.campaign.id)
    ada.rank(1, 2)
    assert ada.write("Hello", key=KEY).state == "ranked"
    assert len(list(ada.submissions.labels(ada.campaign.id))) == 1


def test_a_conversation_ends_by_its_length_by_a_skip_and_by_hand(talk: Any) -> None:
    ada, ended = talk(most_turns=2), set()

    def begins_anew() -> bool:
        ada.write("Hello")
        now = ada.live.current(ada.ada, ada.campaign.id)
        ended.add(now.id)
        return len(now.turns) == 1

    assert begins_anew()
    ada.answer("Same.")  # all answers were the same: there is nothing to rank
    assert (ada.last.state, ada.last.answer) == ("told", "Same.")
    assert not begins_anew()
    ada.answer("a", "b")
    ada.rank(1, 1)
    assert begins_anew()
    ada.answer("a", "b")
    ada.submissions.skip(ada.last.assignment_id, ada.ada, "offensive")
    assert ada.last.state == "skipped"
    assert begins_anew()
    ada.live.answer(ada.live.asked()[0].turn_id, Answers([], [], [], failure="no room"))
    assert (ada.last.state, ada.last.failure) == ("failed", "no room")
    assert begins_anew()
    waits = ada.last.id
    ada.live.end(ada.ada, ada.campaign.id)  # nobody waits for that answer any more
    assert ada.live.asked() == [] and ada.last is None
    assert ada.live.turn(waits, ada.ada).state == "failed"
    assert not ada.live.answer(waits, Answers(["a", "b"], ["sft", "sft"], [True, True]))
    assert begins_anew() and len(ended) == 5


def test_budgets_and_a_closed_campaign_take_no_more_messages(talk: Any) -> None:
    ada = talk(all_turns=2, all_tokens=25)
    ada.write("One")
    ada.answer("a", "b", tokens=30)
    ada.rank(1, 2)
    with pytest.raises(LabelConflictError, match="25 tokens are used up"):
        ada.write("Two")
    ada.campaigns.close(ada.campaign.id)
    with pytest.raises(LabelConflictError, match="campaign is closed"):
        ada.write("Two")


def test_what_is_no_message_is_told(talk: Any) -> None:
    ada = talk(all_turns=1)
    for text in ("", "  \n", "x" * 8001):
        with pytest.raises(InvalidLabelError, match="1 to 8000 characters"):
            ada.write(text)
    with pytest.raises(InvalidLabelError, match="no key"):
        ada.write("Hello", key="short")
    for ends in (True, False):
        ada.write("One")
        if ends:  # nobody ranks it, so that it does not count
            ada.live.end(ada.ada, ada.campaign.id)
    ada.answer("a", "b")
    ada.rank(1, 2)
    with pytest.raises(LabelConflictError, match="1 messages are used up"):
        ada.write("Two")


def test_a_draft_and_openings_are_kept_for_whoever_they_are_of(talk: Any) -> None:
    ada = talk()
    ada.live.save_draft(ada.ada, ada.campaign.id, "Hel")
    ada.live.save_draft(ada.ada, ada.campaign.id, "Hello")
    assert ada.live.draft(ada.ada, ada.campaign.id) == "Hello"
    assert ada.live.draft("somebody else", ada.campaign.id) == ""
    turn = ada.write("Hello")
    assert ada.live.draft(ada.ada, ada.campaign.id) == ""
    with pytest.raises(NotYoursError):
        ada.live.turn(turn.id, "somebody else")
    ada.live.suggest(ada.campaign.id, ["a", "b"])
    ada.live.suggest(ada.campaign.id, [f"opening {n}" for n in range(9)])
    drawn = ada.live.openings(ada.campaign.id, "a seed")
    assert len(set(drawn)) == 3 and drawn == ada.live.openings(ada.campaign.id, "a seed")
    assert drawn != ada.live.openings(ada.campaign.id, "another")


NO_SENSE: list[tuple[dict[str, Any], str]] = [
    ({"answers": 1}, "each message gets 2 to 4"),
    ({"answers": 5}, "each message gets 2 to 4"),
    ({"answers": 3, "mode": "pairs"}, "mode pairs compares 2 completions"),
    ({"most_turns": 0}, "most_turns is 0; 1 or more"),
    ({"all_tokens": -1}, "all_tokens is -1; 0 or more"),
    ({"gold_share": 0.1}, "no tasks that somebody knows the answer of"),
]


def test_settings_that_make_no_sense_are_told(talk: Any) -> None:
    for settings, told in NO_SENSE:
        with pytest.raises(UsageError, match=told):
            talk(**settings)
