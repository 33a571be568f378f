"""People as a judge of checkpoints: asked by `rlhf eval`, over HTTP, and counted by hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from data.errors import Interrupted, StoreDownError
from data.json_lines import read_json_lines
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.records import Submission
from data.labels.review.adjudication import Adjudication
from data.labels.review.comparisons import Comparisons, Wanted
from data.labels.store.database import Database, open_database
from data.labels.web.app import create_app
from pipeline.evaluation.judge.figures import figures
from pipeline.evaluation.judge.people import people_figures

pytest.importorskip("starlette")
ORIGIN = "http://localhost"
NAMES = ("oldpolicy", "newpolicy")
QUESTIONS = ["Who bakes bread?", "Where is the mill?", "What is 3 + 4?", "Who teaches?", "Why?",
             "Is the river wide?"]  # fmt: skip
Command = Callable[..., Any]
Prefer = Callable[[str, list[str]], int]
"""Gives a choice from -3, the left answer is much better, to 3, and 0 for a tie."""


class Annotator:
    """Somebody at the pages, by HTTP; remembers all that came from there."""

    def __init__(self, database: Database, name: str) -> None:
        from starlette.testclient import TestClient

        self.client = TestClient(
            create_app(database, allowed_hosts=["localhost"]),
            base_url=ORIGIN, headers={"origin": ORIGIN},
        )  # fmt: skip
        self.seen: list[str] = []
        token = Accounts(database).invite("annotator", name, 24, "test")[1]
        self.post(f"/invite/{token}")

    def keep(self, response: Any) -> Any:
        assert response.status_code == 200, response.text
        for one in [*response.history, response]:
            self.seen += [str(one.url), str(one.headers), one.text]
        return response

    def post(self, path: str, **more: Any) -> Any:
        return self.keep(self.client.post(path, **more))

    def next_page(self) -> Any:
        """Return the page of a task, of any campaign that has one left, or of the end."""
        page = self.keep(self.client.get("/"))
        for address in re.findall(r'href="(/c/[^/"]+/next)"', page.text) or ["/"]:
            page = self.keep(self.client.get(address))
            if "/guidelines" in str(page.url):
                csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
                assert csrf is not None
                page = self.post(page.url.path, data={"csrf": csrf[1], "version": "1"})
            if 'id="task"' in page.text:
                break
        return page

    def compare(self, prefer: Prefer, *, most: int = 99) -> int:
        """Compare answers until there are none left; return how many were compared."""
        for done in range(most):
            page = self.next_page()
            found = re.search(r'<div id="task"([^>]*)>', page.text)
            if found is None:
                return done
            facts = {name: unescape(value) for name, value in
                     re.findall(r'data-(\w+)="([^"]*)"', found[1])}  # fmt: skip
            shown = [
                unescape(re.sub(r"<[^>]+>", "", text)).strip()
                for text in re.findall(r'data-fold="360">(.*?)</div>', page.text, re.DOTALL)
            ]
            question = next(one for one in QUESTIONS if one in unescape(page.text))
            empty: dict[str, Any] = {name: [None, None] for name in ("tiers", "ratings")}
            choice = prefer(question, shown)
            sheet = {"key": facts["key"], **empty, "flags": [[], []], "choice": choice}
            headers = {"x-csrf-token": facts["csrf"], "accept": "application/json"}
            self.post(f"{facts['base']}/submit", json=sheet, headers=headers)
        return most


@pytest.fixture
def folder(
    tmp_path: Path, tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path]
) -> Path:
    """Return a folder with two checkpoints and prompts."""
    for seed, name in enumerate(NAMES):
        save_policy(tiny_tokenizer(), tmp_path / name, seed=seed, context=256)
    rows = "".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS)
    (tmp_path / "ask.jsonl").write_text(rows)
    return tmp_path


@pytest.fixture
def evaluate(folder: Path, rlhf: Command) -> Callable[..., dict[str, Any]]:
    """Return `rlhf eval` of both checkpoints by people; gives the JSON, with `said`, `page`."""

    def typed(*more: object, people: str = "out=0.5") -> dict[str, Any]:
        result = rlhf(
            "eval", *NAMES, "--out", "out", "--prompts", "ask.jsonl", "--max-new-tokens", 8,
            "--people", people, *more,
        )  # fmt: skip
        assert result.code == 0, result.err
        report = json.loads((folder / "out" / "report.json").read_text())
        page = (folder / "out" / "index.html").read_text(encoding="utf-8")
        return {**report, "said": result.out + result.err, "page": page}

    return typed


@pytest.fixture
def labels(folder: Path) -> Iterator[Callable[[], Database]]:
    """Return what opens the labels of the evaluation."""
    opened: list[Database] = []

    def database() -> Database:
        opened.append(open_database(str(folder / "out" / "labels" / "labels.sqlite")))
        return opened[-1]

    yield database
    for one in opened:
        one.close()


@pytest.fixture
def asked(evaluate: Callable[..., dict[str, Any]], labels: Callable[[], Database]) -> Any:
    """Return a first evaluation, its labels, and Ann, who has compared all of it."""
    first = evaluate()
    database = labels()
    ann = Annotator(database, "Ann")
    assert ann.compare(longer) == 6
    return first, database, ann


def longer(question: str, shown: list[str]) -> int:
    """Prefer the answer with more letters; say nothing of a question."""
    sizes = [sum(map(str.isalpha, text)) for text in shown]
    return 0 if question == QUESTIONS[2] else 2 * ((sizes[1] > sizes[0]) - (sizes[1] < sizes[0]))


def hand_counted(folder: Path, place: str = "out") -> list[float]:
    """Return the outcome of each prompt for the new policy by the rule of `longer`."""
    texts: dict[str, list[str]] = {name: [] for name in NAMES}
    for row in read_json_lines(folder / place / "samples.jsonl"):
        texts[row["checkpoint"]].append(row["response"])
    outcomes = []
    for question, old, new in zip(QUESTIONS, texts["oldpolicy"], texts["newpolicy"], strict=True):
        outcomes.append((1 + longer(question, [old, new]) / 2) / 2)
    return outcomes


def test_from_the_question_to_the_win_rate(
    asked: Any, evaluate: Callable[..., dict[str, Any]], folder: Path
) -> None:
    first, database, _ = asked
    people = first["judges"]["people"]
    assert (people["kind"], people["pairs"], people["complete"]) == ("people", 6, 0)
    assert first["win_rates"] == []
    said = "judgement of people is still open: 0 of 6 pairs have all their labels"
    assert said in first["said"] and said in first["page"]
    assert f"rlhf label serve out --campaign {people['campaign']}" in first["said"]
    assert "rlhf eval oldpolicy newpolicy --out out" in first["said"]

    several = Annotator(database, "Ben").compare(lambda question, shown: -1)
    assert 0 < several < 6  # a part of the pairs is compared by two
    report = evaluate()
    samples, judgements = (
        [*read_json_lines(folder / "out" / name)] for name in ("samples.jsonl", "judgements.jsonl")
    )
    by_ann, by_ben = judgements[:6], judgements[6:]
    outcomes = hand_counted(folder)
    assert {row["index"]: row["outcome"] for row in by_ann} == dict(enumerate(outcomes))
    for row in by_ben:  # who always takes the answer on the left
        assert row["outcome"] == float(row["left"] == "newpolicy")
        outcomes[row["index"]] = (outcomes[row["index"]] + row["outcome"]) / 2
    (rate,) = report["win_rates"]
    assert (rate["a"], rate["b"], rate["judge"]) == ("newpolicy", "oldpolicy", "people")
    assert rate["rate"] == pytest.approx(sum(outcomes) / 6)
    assert (rate["n"], rate["ties"]) == (6, outcomes.count(0.5))
    assert rate["ci95"][0] < rate["rate"] < rate["ci95"][1]
    people = report["judges"]["people"]
    assert (people["labels"], people["annotators"]) == (6 + several, 2)
    said_by_ann = {row["task"]: row["outcome"] for row in by_ann}
    alike = [row["outcome"] == said_by_ann[row["task"]] for row in by_ben]
    assert people["agreement"]["value"] == pytest.approx(sum(alike) / several)
    taken = [row for row in judgements if row["outcome"] != 0.5]
    left = [row["left"] == (row["a"] if row["outcome"] else row["b"]) for row in taken]
    assert people["left_wins"]["value"] == pytest.approx(sum(left) / len(left))
    assert {row["left"] for row in judgements} == set(NAMES)  # each stood left at times
    assert f"6 of 6 pairs compared, {6 + several} labels by 2 annotators" in report["said"]

    draw = {"resamples": 2000, "seed": 0}
    again: dict[str, Any] = figures(samples, judgements, **draw)
    assert again["win_rates"] == report["win_rates"]
    assert again["ratings"] == report["ratings"] != []
    found = people_figures(judgements, seed=0)
    assert {key: people[key] for key in found} == json.loads(json.dumps(found))
    tasks = json.loads((folder / "out" / "people.json").read_text())["tasks"]
    for row in judgements:
        assert [row["index"]] == [one["index"] for one in tasks[row["task"]]]


def test_an_admin_s_word_decides_a_pair_and_agreement_goes_by_the_people(
    asked: Any, evaluate: Callable[..., dict[str, Any]], folder: Path
) -> None:
    database = asked[1]
    Annotator(database, "Ben").compare(lambda question, shown: -1)
    before = evaluate()["judges"]["people"]
    admin = Accounts(database).add("Root", "person").id
    (campaign,) = Campaigns(database).list()
    new = {row["response"] for row in read_json_lines(folder / "out" / "samples.jsonl")
           if row["checkpoint"] == "newpolicy"}  # fmt: skip
    for one in Comparisons(database).find(campaign.id, Wanted()).shown:
        task, _ = Comparisons(database).said(campaign.id, one.task_id)
        ranks = [1 if text in new else 2 for text in task.new.completions]
        said = Submission(f"the word on {one.task_id}", ranks, strength=3)
        Adjudication(database).decide(one.task_id, admin, said, instead_of="")
    report = evaluate()
    (rate,) = report["win_rates"]
    assert (rate["a"], rate["rate"], rate["n"], rate["ties"]) == ("newpolicy", 1.0, 6, 0)
    after = report["judges"]["people"]
    assert (before.pop("adjudicated"), after.pop("adjudicated")) == (0, 6)
    assert before == after


def test_nothing_tells_whose_an_answer_is(asked: Any, folder: Path) -> None:
    ann = asked[2]
    for path in ("/", "/account", "/help"):
        ann.seen.append(ann.client.get(path).text)
    seen = "\n".join(ann.seen)
    assert QUESTIONS[0] in seen
    for name in (*NAMES, str(folder)):
        assert name not in seen
    kept = b"".join(one.read_bytes() for one in (folder / "out" / "labels").iterdir())
    for name in NAMES:
        assert name.encode() not in kept  # not even the one who serves the pages can see it


def test_labels_of_answers_that_changed_are_not_taken_and_that_is_told(
    evaluate: Callable[..., dict[str, Any]],
    labels: Callable[[], Database],
    save_policy: Callable[..., Path],
    tiny_tokenizer: Callable[..., Any],
    folder: Path,
) -> None:
    evaluate(people="out=0")
    Annotator(labels(), "Ann").compare(longer, most=4)
    before = evaluate(people="out=0")["judges"]["people"]
    assert (before["labels"], before["complete"], before["open"]) == (4, 4, True)
    save_policy(tiny_tokenizer(), folder / "newpolicy", seed=7, context=256)
    changed = evaluate(people="out=0")
    after = changed["judges"]["people"]
    assert after["campaign"] != before["campaign"]
    assert (after["labels"], after["labels_not_taken"], after["complete"]) == (0, 4, 0)
    assert changed["win_rates"] == []
    assert f"4 labels of campaign {before['campaign']} not taken" in changed["said"]
    assert f"rlhf label tasks out --close {before['campaign']}" in changed["said"]
    # What is compared again is what counts again.
    save_policy(tiny_tokenizer(), folder / "newpolicy", seed=1, context=256)
    assert evaluate(people="out=0")["judges"]["people"]["labels"] == 4


def test_a_further_checkpoint_asks_for_what_is_new_alone(
    evaluate: Callable[..., dict[str, Any]],
    labels: Callable[[], Database],
    save_policy: Callable[..., Path],
    tiny_tokenizer: Callable[..., Any],
    folder: Path,
) -> None:
    evaluate(people="out=0")
    database = labels()
    ann = Annotator(database, "Ann")
    ann.compare(longer)
    save_policy(tiny_tokenizer(), folder / "third", seed=5, context=256)
    people = evaluate("third", people="out=0")["judges"]["people"]
    assert (people["pairs"], people["complete"], people["labels"]) == (18, 6, 6)
    assert ann.compare(longer) == 12
    report = evaluate("third", people="out=0")
    assert not report["judges"]["people"]["open"]
    assert "still open" not in report["said"]
    assert {(rate["a"], rate["b"]): rate["n"] for rate in report["win_rates"]} == {
        ("newpolicy", "oldpolicy"): 6, ("third", "newpolicy"): 6, ("third", "oldpolicy"): 6,
    }  # fmt: skip
    assert "People" in report["page"]


def test_what_is_closed_or_gone_is_told_with_the_way_out(
    evaluate: Callable[..., dict[str, Any]],
    labels: Callable[[], Database],
    rlhf: Command,
    folder: Path,
) -> None:
    name = evaluate()["judges"]["people"]["campaign"]
    campaigns = Campaigns(labels())
    campaigns.close(campaigns.list()[0].id)
    closed = evaluate()
    people = closed["judges"]["people"]
    assert (people["open"], people["closed"], people["labels"]) == (False, True, 0)
    assert f"campaign {name} is closed at 0 of 6 pairs" in closed["said"]
    assert f"rlhf label tasks out --reopen {name}" in closed["said"]
    assert "its campaign is closed at 0" in closed["page"]
    assert rlhf("label", "tasks", "out", "--reopen", name).out.splitlines()[-1].endswith("open")
    assert evaluate()["judges"]["people"]["open"]

    shutil.rmtree(folder / "out" / "labels")
    gone = evaluate()
    assert f"labels.sqlite does not hold campaign {name} any more: what was said" in gone["said"]
    assert gone["judges"]["people"]["open"]
    assert "any more" not in evaluate()["said"]


def test_equal_answers_are_asked_of_nobody_and_tie(
    rlhf: Command, labels: Callable[[], Database], folder: Path
) -> None:
    arguments = (
        "eval", "one=oldpolicy", "same=oldpolicy", "two=newpolicy", "--out", "out",
        "--prompts", "ask.jsonl", "--max-new-tokens", 8, "--temperature", 0, "--people", "out=0",
    )  # fmt: skip
    assert rlhf(*arguments).code == 0
    ann = Annotator(labels(), "Ann")
    assert ann.compare(longer) == 6  # one task stands for both of the pairs with the same answers
    assert rlhf(*arguments).code == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    rates = {(rate["a"], rate["b"]): rate for rate in report["win_rates"]}
    even = rates["same", "one"]
    assert (even["wins"], even["ties"], even["losses"], even["rate"]) == (0, 6, 0, 0.5)
    told = report["judges"]["people"]
    assert (told["pairs"], told["labels"], told["same_answers"]) == (6, 6, 6)
    ours, theirs = rates["two", "one"], rates["two", "same"]
    assert {**ours, "b": ""} == {**theirs, "b": ""} and ours["n"] == 6
    assert told["left_wins"]["n"] <= 6  # a label counts once


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--people", "out=2"], "write DIR or DIR=0.5, a share of the pairs"),
        (["--people", "nowhere"], "nowhere: no such run folder"),
        (["--guidelines", "rules.md"], "name where they label by --people"),
        (["--people", "out", "--guidelines", "rules.md"], "rules.md can't be read"),
    ],
)
def test_what_can_not_be_asked_is_refused_before_anything_is_sampled(
    rlhf: Command, folder: Path, given: list[str], told: str
) -> None:
    result = rlhf("eval", *NAMES, "--out", "out", "--prompts", "ask.jsonl", *given)
    assert result.code == 2, result.err
    assert told in result.err
    assert not (folder / "out" / "samples.jsonl").exists()


@pytest.fixture
def stage(folder: Path, make_context: Callable[..., Any]) -> Callable[..., Any]:
    """Return the context of an evaluate stage that asks people in the run `folder`."""
    from pipeline.contract.settings import references
    from pipeline.stages.evaluate.settings import EvaluateSettings

    def build(stop_after: int | None = None, **people: Any) -> Any:
        settings = EvaluateSettings.model_validate({
            "checkpoints": {name: str(folder / name) for name in NAMES},
            "prompts": [{"path": str(folder / "ask.jsonl")}],
            "max_new_tokens": 8, "resamples": 50, "people": {"poll_seconds": 0.01, **people},
        })  # fmt: skip
        inputs = {field: target for field, (target, _) in references(settings).items()}
        return make_context(settings, inputs, folder / "out" / "evaluate", stop_after=stop_after)

    return build


def test_the_stage_waits_is_stopped_and_goes_on(
    stage: Callable[..., Any],
    labels: Callable[[], Database],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.contract.context import StageContext
    from pipeline.stages.evaluate.stage import run

    said: list[str] = []
    monkeypatch.setattr(StageContext, "say", lambda _, text: said.append(text))
    with pytest.raises(Interrupted, match="at 0 of 5 tasks, all labels are kept"):
        run(stage(stop_after=20, overlap=0, needed=0.8))
    assert any(line.startswith("waiting for labels by `rlhf label serve") for line in said)
    evaluated = folder / "out" / "evaluate"
    assert not (evaluated / "evaluation.json").exists()
    ann = Annotator(labels(), "Ann")
    ann.compare(longer, most=4)
    with pytest.raises(Interrupted, match="at 4 of 5 tasks"):
        run(stage(stop_after=20, overlap=0, needed=0.8))
    ann.compare(longer, most=1)
    metrics = run(stage(overlap=0, needed=0.8))
    results = json.loads((evaluated / "evaluation.json").read_text())
    (rate,) = results["win_rates"]
    assert (metrics["win_rate"], metrics["win_rate/judge"]) == (rate["rate"], "people")
    assert (rate["n"], results["judges"]["people"]["labels"]) == (5, 5)
    outcomes = hand_counted(folder / "out", "evaluate")
    given = {r["index"]: r["outcome"] for r in read_json_lines(evaluated / "judgements.jsonl")}
    assert given == {index: outcomes[index] for index in given}


def test_a_campaign_that_is_closed_ends_the_waiting(
    stage: Callable[..., Any], labels: Callable[[], Database]
) -> None:
    from pipeline.stages.evaluate.stage import run

    with pytest.raises(Interrupted):
        run(stage(stop_after=20))
    campaigns = Campaigns(labels())
    campaigns.close(campaigns.list()[0].id)
    assert "win_rate" not in run(stage())  # nobody said anything


def test_labels_that_are_deleted_end_the_waiting(
    stage: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages import asking
    from pipeline.stages.evaluate.stage import run

    def delete(*_: Any) -> None:
        shutil.rmtree(folder / "out" / "labels")

    monkeypatch.setattr(asking, "_sleep", delete)
    with pytest.raises(StoreDownError, match=r"labels\.sqlite was deleted or replaced while"):
        run(stage(stop_after=20))


def test_people_leave_the_key_of_an_evaluation_without_them_as_it_was(
    stage: Callable[..., Any],
) -> None:
    settings = stage(guidelines="rules.md", database="other.sqlite").settings
    assert settings.key_settings()["people"] == {
        "overlap": 0.2, "annotators_per_task": 2, "needed": 1.0,
    }  # fmt: skip
    assert "people" not in settings.model_copy(update={"people": None}).key_settings()


def test_people_compare_two_checkpoints_at_least(rlhf: Command, folder: Path) -> None:
    result = rlhf("eval", "oldpolicy", "--out", "out", "--prompts", "ask.jsonl", "--people", "out")
    assert result.code == 2
    assert "people compare answers of two checkpoints or more" in result.err
    assert not (folder / "out").exists()


def test_a_wrong_judge_leaves_no_label_database(
    rlhf: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--prompts", "ask.jsonl", "--people", "out", "--judge", "x=")
    result = rlhf("eval", "a=here", "b=there", "--out", "out", *given)
    assert result.code == 2 and "write NAME=PLACE" in result.err
    assert not Path("out").exists()
