"""`labeler: people`: a real store, and scripted people at its doors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import Interrupted, RecipeError, SourceError, UsageError
from data.labels.annotators.gold import GoldJudge
from data.labels.annotators.working import work_through
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.submissions import Submissions
from data.labels.live.conversations import Conversations
from data.labels.live.relay import Relay
from data.labels.records import AnnotatorKind, Submission
from data.labels.review.adjudication import Adjudication
from data.labels.review.comparisons import Comparisons, Wanted
from data.labels.store.database import Database, open_database
from data.records import Ranking, chat
from pipeline.stages.rankings import stage as rankings
from pipeline.stages.rankings.people import read_tasks
from pipeline.stages.rankings.settings import RankingsSettings


@pytest.fixture
def policy(tiny_tokenizer: Any, save_policy: Any) -> Path:
    return save_policy(tiny_tokenizer(), context=512)


@pytest.fixture
def settings(policy: Path) -> Callable[..., RankingsSettings]:
    def build(people: dict[str, Any] | None = None, **changes: Any) -> RankingsSettings:
        return RankingsSettings(
            **{
                "labeler": "people",
                "model": str(policy),
                "prompts": [{"world": "rm_prompts", "limit": 6}],
                "completions": 3,
                "max_new_tokens": 6,
                "people": {"mode": "rank", "overlap": 0.0, "poll_seconds": 0.05, **(people or {})},
                **changes,
            }
        )

    return build


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "rankings.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class Person(GoldJudge):
    """A person who ranks as the gold annotator would."""

    kind: AnnotatorKind = "person"


@contextmanager
def people_at_work(run: Path, *names: str, limit: int | None = None) -> Iterator[None]:
    """Let people label the newest campaign of a run as soon as it is there."""
    over = threading.Event()
    failures: list[BaseException] = []

    def label(name: str) -> None:
        try:
            while not (run / "labels" / "labels.sqlite").exists() and not over.is_set():
                time.sleep(0.02)
            database = open_database(str(run / "labels" / "labels.sqlite"))
            left = limit
            while not over.is_set() and left != 0:
                for campaign in Campaigns(database).list()[-1:]:
                    given = work_through(database, campaign, Person(name=name), limit=left)
                    left = None if left is None else left - given
                time.sleep(0.02)
            database.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=label, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        assert not failures


@contextmanager
def store(run: Path) -> Iterator[Database]:
    database = open_database(str(run / "labels" / "labels.sqlite"), create=False)
    yield database
    database.close()


def test_waits_for_people_and_writes_what_they_said(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    asked = settings({"overlap": 1.0, "annotators_per_task": 2})
    context = make_context(asked, {"model": policy})
    with people_at_work(tmp_path, "Ann", "Ben", "Cleo"):
        metrics = rankings.run(context)
    found = rows(context.folder)
    tasks = [*read_tasks(context.folder / "tasks.jsonl")]
    assert metrics["n_tasks"] == metrics["n_prompts"] == len(tasks)
    assert metrics["n_labels"] == metrics["n_rankings"] == len(found) == 2 * len(tasks)
    assert {len(task.policies) for task in tasks} <= {2, 3}
    gold = Person()
    for row in found:
        Ranking(**row)
        label = row["meta"]["_label"]
        assert label["annotator"]["name"] in ("Ann", "Ben", "Cleo")
        assert sorted(label["order"]) == list(range(len(row["completions"])))
        scores = [gold.annotator.score(row["prompt"], text) for text in row["completions"]]
        for a, better in enumerate(scores):
            for b, worse in enumerate(scores):
                assert (row["ranks"][a] < row["ranks"][b]) == (better > worse)


def test_a_majority_makes_one_ranking_of_a_task(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    people = {"overlap": 1.0, "annotators_per_task": 3, "consolidation": "majority"}
    context = make_context(settings(people), {"model": policy})
    with people_at_work(tmp_path, "Ann", "Ben", "Cleo"):
        metrics = rankings.run(context)
    found = rows(context.folder)
    assert len(found) == metrics["n_tasks"] == metrics["n_rankings"]
    assert metrics["n_labels"] == 3 * len(found)
    assert {row["annotator"] for row in found} == {"majority"}


def test_what_an_admin_decided_is_what_the_reward_model_learns(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    asked = settings({"overlap": 1.0, "annotators_per_task": 2})
    with people_at_work(tmp_path, "Ann", "Ben"):
        rankings.run(make_context(asked, {"model": policy}))
    with store(tmp_path) as database:
        (campaign,) = Campaigns(database).list()
        admin = Accounts(database).add("Root", "person").id
        one = Comparisons(database).find(campaign.id, Wanted()).shown[0]
        task, _ = Comparisons(database).said(campaign.id, one.task_id)
        tied = Submission("the word", [1] * len(task.new.completions))
        Adjudication(database).decide(one.task_id, admin, tied, instead_of="")
    context = make_context(asked, {"model": policy})  # begun anew, as --force does
    metrics = rankings.run(context)
    found = rows(context.folder)
    decided = [row for row in found if row["completions"] == task.new.completions]
    assert [row["ranks"] for row in decided] == [tied.ranks]
    assert len(found) == metrics["n_labels"] == 2 * metrics["n_tasks"] - 1


def test_people_who_differ_hand_on_their_shares(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    people = {"overlap": 1.0, "annotators_per_task": 2, "consolidation": "soft"}
    context = make_context(settings(people), {"model": policy})
    with people_at_work(tmp_path, "Ann", "Ben"):
        rankings.run(context)
    for row in rows(context.folder):
        # Both rank as the gold annotator does: all shares are 1, 0, or 1/2 of a tie.
        assert row["probabilities"] == [
            [0.5 + 0.5 * ((a < b) - (a > b)) for b in row["ranks"]] for a in row["ranks"]
        ]
        Ranking(**row)


def test_stops_while_it_waits_and_goes_on_without_sampling_again(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        people_at_work(tmp_path, "Ann", limit=2),
        pytest.raises(Interrupted, match="all labels are kept"),
    ):
        rankings.run(make_context(settings(), {"model": policy}, stop_after=60))
    before = (tmp_path / "rankings" / "tasks.jsonl").read_bytes()
    monkeypatch.setattr(
        "pipeline.stages.rankings.people.make_sampler", lambda context: pytest.fail("sampled again")
    )
    context = make_context(settings(), {"model": policy})
    with people_at_work(tmp_path, "Ben"):
        rankings.run(context)
    assert (context.folder / "tasks.jsonl").read_bytes() == before
    names = [row["meta"]["_label"]["annotator"]["name"] for row in rows(context.folder)]
    assert names.count("Ann") == 2 and names.count("Ben") == len(names) - 2


def test_needed_ends_the_wait_early(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    for needed, labels in ((0.5, 3), (4, 4)):
        run = tmp_path / f"run{labels}"
        context = make_context(
            settings({"needed": needed}, temperature=2.0), {"model": policy}, run / "rankings"
        )
        with people_at_work(run, "Ann", limit=labels):
            metrics = rankings.run(context)
        assert metrics["n_tasks"] == 6
        assert metrics["n_labels"] == labels


def test_a_closed_campaign_ends_the_wait(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    with people_at_work(tmp_path, "Ann", limit=1), pytest.raises(Interrupted):
        rankings.run(make_context(settings(), {"model": policy}, stop_after=60))
    with store(tmp_path) as database:
        Campaigns(database).close(Campaigns(database).list()[0].id)
    metrics = rankings.run(make_context(settings(), {"model": policy}))
    assert metrics["n_labels"] == 1


def test_other_completions_make_another_campaign(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    for key, changes in (("a", {}), ("b", {"temperature": 0.7}), ("a", {})):
        folder = tmp_path / "rankings"
        # What the runner does with the folder of a changed stage.
        for path in folder.glob("*.jsonl"):
            path.unlink()
        context = make_context(settings(**changes), {"model": policy}, folder, key=key)
        with people_at_work(tmp_path, "Ann"):
            rankings.run(context)
    with store(tmp_path) as database:
        names = [campaign.name for campaign in Campaigns(database).list()]
        assert len(names) == len(set(names)) == 2
        assert all(name.startswith("rankings-") for name in names)
        # The third stage found the labels of the first.
        progress = [Campaigns(database).progress(c.id) for c in Campaigns(database).list()]
        assert [p.labels for p in progress] == [p.tasks for p in progress]


def test_known_answers_qualify_people_and_are_no_rankings(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path
) -> None:
    gold = [
        Ranking(prompt=chat(f"What is {n} + 1?"), completions=[str(n + 1), "9"], ranks=[1, 2])
        for n in range(2, 6)
    ]
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in gold))
    asked = settings({"gold": str(path), "qualification_tasks": 2, "gold_share": 0.2})
    context = make_context(asked, {"model": policy, "people.gold": str(path)})
    with people_at_work(tmp_path, "Ann"):
        metrics = rankings.run(context)
    assert metrics["n_labels"] == metrics["n_tasks"] == len(rows(context.folder))
    with store(tmp_path) as database:
        campaign, person = Campaigns(database).list()[0], Accounts(database).list()[0]
        from data.labels.campaign.queue import Queue

        status = Queue(database).qualification(person.id, campaign.id)
        assert (status.done, status.passed, status.agreed) == (2, True, 2)
    few = settings({"gold": str(path), "qualification_tasks": 6})
    with pytest.raises(SourceError, match="holds 4 rankings that can be asked, 6 are needed"):
        rankings.run(
            make_context(few, {"model": policy, "people.gold": str(path)}, tmp_path / "few/r")
        )


def test_annotators_that_are_no_people_label_while_it_waits(
    make_context: Any, settings: Any, policy: Path
) -> None:
    people = {
        "mode": "rate_and_rank",
        "overlap": 1.0,
        "annotators_per_task": 3,
        "repeat_share": 0.2,
        "annotators": [{"kind": "gold"}, {"kind": "simulated", "pool": 2}],
    }
    context = make_context(settings(people), {"model": policy})
    metrics = rankings.run(context)
    assert metrics["n_annotators"] == 3
    kinds = [row["meta"]["_label"]["annotator"]["kind"] for row in rows(context.folder)]
    assert kinds.count("gold") == metrics["n_tasks"] and set(kinds) == {"gold", "simulated"}


def talk(run: Path, messages: int) -> None:
    """Talk as Ada at the newest campaign of a run, and rank what is answered."""
    while not (run / "labels" / "worker.json").exists():
        time.sleep(0.01)
    database = open_database(str(run / "labels" / "labels.sqlite"))
    live, ada = Conversations(database), Accounts(database).add("Ada", "person").id
    campaign = Campaigns(database).list()[-1].id
    text, given = live.openings(campaign, "any", 1)[0], ""
    with Relay(live, run / "labels" / "worker.json").running() as relay:
        for number in range(messages):
            live.write(ada, campaign, f"the key of message {number}", text)
            relay.wake()
            while not given:
                now = live.current(ada, campaign)
                assert now is not None and now.last is not None
                given = now.last.assignment_id
                time.sleep(0.01)
            Submissions(database).submit(given, ada, Submission(f"key {number}", [2, 1]))
            text, given = "And now?", ""
    database.close()


def test_people_talk_and_go_on_with_the_best_answer(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.labels.live.relay._RETRY_SECONDS", 0.02)
    asked = {"needed": 3, "conversations": {"most_turns": 2, "against": str(policy)}}
    both = {"model": policy, "people.conversations.against": policy}
    ada = threading.Thread(target=talk, args=(tmp_path, 3))
    ada.start()
    context = make_context(settings(asked, completions=2), both)
    metrics = rankings.run(context)
    ada.join()
    assert (metrics["n_rankings"], metrics["n_conversations"]) == (3, 2)
    first, second, third = rows(context.folder)
    assert second["prompt"][:-1] == [
        *first["prompt"],
        {"role": "assistant", "content": first["completions"][1]},
    ]
    assert third["prompt"] == [{"role": "user", "content": "And now?"}]
    assert not (tmp_path / "labels" / "worker.json").exists()
    again = make_context(settings(asked, completions=2), both)
    assert rankings.run(again)["n_rankings"] == 3  # without anybody there


def test_the_key_holds_what_the_labels_follow_from(settings: Any) -> None:
    plain = settings().key_settings()
    assert settings({"poll_seconds": 9, "lease_minutes": 5}).key_settings() == plain
    assert settings({"needed": 0.5}).key_settings() != plain
    assert "conversations" not in plain["people"]
    assert settings({"needed": 5, "conversations": {}}).key_settings() != plain
    gold = RankingsSettings(model="./m", prompts=[{"world": "rm_prompts"}])
    assert "people" not in gold.key_settings()
    bare = RankingsSettings(**{**gold.model_dump(), "labeler": "people"})
    assert bare.key_settings()["people"]["overlap"] == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": {"needed": 1.5}}, "neither a share"),
        ({"people": {"gold_share": 0.1}}, "need `gold`"),
        ({"people": {"mode": "pairs"}}, "compares 2 completions"),
        ({"completions": 10}, "2 to 9 completions"),
        ({"people": {"conversations": {}}}, "needed is a number of messages"),
        (
            {"people": {"needed": 9, "conversations": {"all_turns": 8}}},
            "needed asks for 9 messages, conversations.all_turns takes 8",
        ),
        (
            {"people": {"needed": 9, "conversations": {}, "repeat_share": 0.1}},
            "so drop repeat_share",
        ),
        (
            {"completions": 5, "people": {"needed": 9, "conversations": {}}},
            "people wait for 2 to 4 answers",
        ),
        ({"limit": 3, "people": {"needed": 5}}, "limit makes 3 at most"),
        ({"people": {"strategy": "disagreement", "scored_by": ["./a"]}}, "needs 2 reward models"),
        ({"people": {"database": "postgresql://me:secret@host/db"}}, "write env:NAME"),
        ({"people": {"annotators": [{"kind": "gold"}, {"kind": "gold"}]}}, "two annotators"),
        ({"labeler": "gold", "people": {}}, "`people` is for labeler: people"),
        (
            {"prompts": [{"path": "p.jsonl"}], "people": {"annotators": [{"kind": "gold"}]}},
            "embedded world's prompts alone",
        ),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    whole = {"labeler": "people", "model": "./m", "prompts": [{"world": "rm_prompts"}], **changes}
    with pytest.raises(ValidationError, match=message):
        RankingsSettings(**whole)


def test_missing_packages_variables_and_guidelines_are_told(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="NOWHERE is not set"):
        rankings.run(make_context(settings({"database": "env:NOWHERE"}), {"model": policy}))
    asked = settings({"guidelines": "none.md"})
    with pytest.raises(RecipeError, match=r"none\.md can't be read"):
        rankings.check(asked, make_context(asked).hand)
    monkeypatch.setattr("data.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'rlhf-pipeline\[labels\]'"):
        rankings.run(make_context(settings(), {"model": policy}))


def test_reward_models_score_what_is_chosen_by_their_scores(
    make_context: Any, settings: Any, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Letters:
        """A reward model that counts letters, or the other way round."""

        def __init__(self, source: str) -> None:
            self.sign = -1 if source.endswith("b") else 1

        def score(
            self, prompts: Any, texts: list[str], *, ended: list[bool], advance: Any
        ) -> list[float]:
            assert len(prompts) == len(texts) == len(ended)
            return [float(self.sign * len(text)) for text in texts]

    monkeypatch.setattr(
        "reward.learned.model.RewardModel.load", lambda source, **options: Letters(str(source))
    )
    people = {
        "strategy": "disagreement",
        "scored_by": ["./a", "./b"],
        "annotators": [{"kind": "simulated", "pool": 1, "quality": "scores"}],
    }
    inputs = {"model": policy, "people.scored_by.0": "./a", "people.scored_by.1": "./b"}
    context = make_context(settings(people), inputs)
    rankings.run(context)
    with store(tmp_path) as database:
        from data.labels.campaign.submissions import Submissions

        campaign = Campaigns(database).list()[0]
        given = [row.assignment for row in Submissions(database).labels(campaign.id)]
    assert given and {one.strategy for one in given} == {"disagreement"}
    for one in given:
        lengths = [len(text) for text in one.task.new.completions]
        assert one.task.new.scores == [lengths, [-length for length in lengths]]
        assert 0 < one.probability <= 1


def test_says_who_skipped_while_it_waits(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shy = GoldJudge(name="shy")
    monkeypatch.setattr(shy, "judge", lambda *_: None)
    said: list[str] = []
    monkeypatch.setattr("pipeline.stages.asking.TOLD_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.stages.rankings.annotators.judges_of", lambda *_, **__: [shy])
    context = make_context(settings(), {"model": policy}, stop_after=60)
    monkeypatch.setattr(type(context), "say", lambda _, text: said.append(text))
    with pytest.raises(Interrupted):
        rankings.run(context)
    waiting = [line for line in said if line.startswith("waiting for labels")]
    assert "; skipped:" not in waiting[0]
    n_tasks = len([*read_tasks(context.folder / "tasks.jsonl")])
    assert waiting[-1].endswith(f"; skipped: {n_tasks} by shy)")


def test_says_that_too_few_people_are_there_for_what_is_left(
    make_context: Any, settings: Any, policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setattr("pipeline.stages.asking.TOLD_SECONDS", 0.0)
    asked = settings({"overlap": 1.0, "annotators_per_task": 3})
    context = make_context(asked, {"model": policy}, stop_after=100)
    monkeypatch.setattr(type(context), "say", lambda _, text: said.append(text))
    with people_at_work(tmp_path, "Ann", "Ben"), pytest.raises(Interrupted):
        rankings.run(context)
    n_tasks = len([*read_tasks(context.folder / "tasks.jsonl")])
    assert said[-1].startswith(f"{n_tasks} tasks wait for people: 3 label each")
    assert f"and 2 may; let in another by `rlhf label invite {tmp_path} NAME`" in said[-1]
    assert not said[0].startswith(f"{n_tasks} tasks wait")
