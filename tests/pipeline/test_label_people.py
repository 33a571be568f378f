"""A recipe that waits for people, from the command line to a trained reward model.

Three people at once: as programs that speak HTTP, and as browsers that are driven by keys alone.
They see nothing but the pages. What they prefer they decide by the texts shown there, so that an
answer mixed up between the page and the file would show in the rankings.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data.labels.campaign.accounts import Accounts
from data.labels.campaign.campaigns import Campaigns
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import CampaignSettings, Submission
from data.labels.store.database import open_database
from data.records import Ranking, chat, dense_ranks

pytestmark = pytest.mark.first

ROOT = Path(__file__).parents[2]
NAMES = ("Ann", "Ben", "Cleo")
Command = Callable[..., Any]
Start = Callable[..., AbstractContextManager[Any]]
Prefer = Callable[[str, list[str]], list[int]]
"""Gives dense ranks for the answers to a prompt, as the page shows both."""

WAITING = """\
name: waiting
stages:
  tok: {kind: tokenizer, train: [{path: text.txt}, {path: chats.jsonl}], vocab_size: 300}
  base:
    {kind: pretrain, tokenizer: tok, train: [{path: text.txt, format: text_lines}],
     heldout_share: 0.2, hidden_size: 16, layers: 1, heads: 2, context_length: 32, positions: 256,
     steps: 4, batch_size: 2, evaluate_every: 0, save_every: 0}
  rankings:
    {kind: rankings, labeler: people, model: base, prompts: [{path: prompts.jsonl}], limit: 12,
     completions: 3, max_new_tokens: 16,
     people: {overlap: 0.5, annotators_per_task: 2, poll_seconds: 0.2, guidelines: rules.md%s}}
  reward:
    {kind: reward, model: base, rankings: rankings, heldout_share: 0.4, prompts_per_step: 4,
     learning_rate: 1e-3, save_every: 0}
"""


class Page(HTMLParser):
    """What a task's page says: its facts, the prompt and the answers as a reader sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.facts: dict[str, str] = {}
        self.prompt, self.answers = "", list[str]()
        self._depth, self._into = 0, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if given.get("id") == "task":
            self.facts = given
        if given.get("name") in ("csrf", "version"):
            self.facts[given["name"]] = given.get("value", "")
        classes = given.get("class", "").split()
        if tag == "article" and "answer" in classes:
            self.answers.append("")
        if self._depth and tag not in ("br", "hr"):
            self._depth += 1
        elif "prose" in classes and "text" in classes:
            self._depth, self._into = 1, "answer" if self.answers else "prompt"
        elif self._depth and tag == "br":
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        self._depth = max(0, self._depth - 1)

    def handle_data(self, data: str) -> None:
        if self._depth and self._into == "answer":
            self.answers[-1] += data
        elif self._depth:
            self.prompt += data


def ratings_of(ranks: list[int]) -> list[int]:
    return [8 - rank for rank in ranks]


class Caller:
    """A person as a program that speaks HTTP."""

    def __init__(self, link: str, prefer: Prefer) -> None:
        import httpx

        base, self.prefer = link.partition("/invite/")[0], prefer
        # A machine that trains beside it takes its time.
        self.http = httpx.Client(
            base_url=base, headers={"origin": base}, follow_redirects=True, timeout=None
        )
        assert self.http.post(link.removeprefix(base)).status_code == 200

    def turn(self) -> bool:
        """Do the next task; return whether there was one."""
        response = self.http.get("/")
        page = Page(response.text)
        if response.url.path.endswith("/guidelines"):
            sent = self.http.post(
                response.url.path, data={k: page.facts[k] for k in ("csrf", "version")}
            )
            page = Page(sent.text)
        if "data-base" not in page.facts:
            return False
        ranks = self.prefer(page.prompt.strip(), [text.strip() for text in page.answers])
        sheet = {
            "key": page.facts["data-key"],
            "tiers": ranks,
            "ratings": ratings_of(ranks),
            "flags": [[] for _ in ranks],
            "seconds": 1.0,
        }
        sent = self.http.post(
            f"{page.facts['data-base']}/submit",
            json=sheet,
            headers={"x-csrf-token": page.facts["data-csrf"], "accept": "application/json"},
        )
        assert sent.status_code == 200, sent.text
        return True

    def close(self) -> None:
        self.http.close()


class Typist:
    """A person at a browser, who uses keys alone."""

    def __init__(self, browser: Any, link: str, prefer: Prefer) -> None:
        self.prefer, self.browser = prefer, browser
        self.page = browser.new_page(viewport={"width": 1280, "height": 720})
        # A machine that trains beside it takes its time.
        self.page.set_default_timeout(180_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(link)
        self.page.locator("button.primary").press("Enter")
        self.page.wait_for_url(lambda url: "/invite/" not in url)

    def turn(self) -> bool:
        """Do the next task; return whether there was one."""
        page = self.page
        if not re.search(r"/t/[^/]+$", page.url):
            page.goto(page.url.partition("/c/")[0].partition("/t/")[0] + "/")
        if page.url.endswith("/guidelines"):
            page.locator("#accept").press("Enter")
            page.wait_for_url(lambda url: not url.endswith("/guidelines"))
        if not re.search(r"/t/[^/]+$", page.url):
            return False
        answers = page.locator("article.answer .text").all_inner_texts()
        prompt = page.locator("section.prompt .text").last.inner_text()
        ranks = self.prefer(prompt.strip(), [text.strip() for text in answers])
        for given in (ratings_of(ranks), ranks):
            for place, number in enumerate(given):
                page.keyboard.press(f"Shift+{'ABCDEFGHI'[place]}")
                page.keyboard.press(str(number))
            before = page.url
            page.keyboard.press("Enter")
        page.wait_for_url(lambda url: url != before)
        assert not self.errors
        return True

    def close(self) -> None:
        self.browser.close()


def told(rlhf: Command, *arguments: str) -> str:
    """Return what a short command says, which runs in this process."""
    done = rlhf(*arguments)
    assert done.code == 0, done.err
    return str(done.out)


def all_work(people: list[Any], process: Any) -> list[int]:
    """Let people work in turn until the recipe is through; return how much each did."""
    done = [0] * len(people)
    while not process.over():
        worked = False
        for place, person in enumerate(people):
            one = person.turn()
            done[place] += one
            worked |= one
        if not worked:
            time.sleep(0.5)
    return done


def rankings_of(run: Path) -> list[dict[str, Any]]:
    text = (run / "rankings" / "rankings.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    for row in rows:
        Ranking(**row)
    return rows


def shortest(prompt: str, answers: list[str]) -> list[int]:
    # An untrained model writes anything; letters are the same on the page and in the file.
    return dense_ranks([sum(map(str.isalpha, answer)) for answer in answers])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("sqlite", "per_annotator"),
        pytest.param("postgresql", "soft", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_waits_for_three_people_who_call(
    tiny_recipe: Path,
    rlhf: Command,
    running: Start,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    how: str,
) -> None:
    folder, more = tiny_recipe.parent, f", consolidation: {how}"
    if where == "postgresql":
        monkeypatch.setenv("LABELS_AT", request.getfixturevalue("postgresql"))
        more += ', database: "env:LABELS_AT"'
    (folder / "waiting.yaml").write_text(WAITING % more)
    (folder / "rules.md").write_text("# Short is good")
    run, waits = "runs/waiting", ("run", "waiting.yaml")
    with running(*waits) as process:
        process.line(r"waiting for labels by `rlhf label serve runs/waiting`")
        assert process.interrupt() == 130
    assert "all labels are kept" in process.log.read_text()
    assert (folder / run / "labels" / "labels.sqlite").exists() == (where == "sqlite")
    done = three_callers(rlhf, running, run, waits)
    assert not (folder / run / "labels" / "server.json").exists()
    rows = rankings_of(folder / run)
    assert min(done) > 0
    if how == "soft":
        assert len({json.dumps(row["prompt"]) for row in rows}) == len(rows) < sum(done)
        assert all(row["probabilities"] for row in rows)
    else:
        assert sum(done) == len(rows)
        for row in rows:
            assert row["meta"]["_label"]["ratings"] == ratings_of(row["ranks"])
    for row in rows:
        assert row["ranks"] == shortest("", row["completions"])
    assert (folder / run / "reward" / "model" / "model.safetensors").is_file()
    assert told(rlhf, *waits).count("up to date") == 4
    report = json.loads(told(rlhf, "label", "stats", run, "--json"))
    assert report["overlapping"] > 0 and report["whole"]["figures"]["agreement"]["value"] == 1.0
    exported = told(rlhf, "label", "export", run, "--out", "out", "--what", "preferences")
    assert "preferences/train.jsonl" in exported


def three_callers(rlhf: Command, running: Start, run: str, waits: tuple[str, ...]) -> list[int]:
    """Let three people label until the recipe is through; return how much each did."""
    with running("label", "serve", run, "--port", "0") as server:
        address = server.line(r"serving .* at (http://127\.0\.0\.1:\d+)")[1]
        first = server.line(r"your way in, good once: (\S+)")[1]
        assert first.startswith(f"{address}/invite/")
        links = [
            line.split("\t") for line in told(rlhf, "label", "invite", run, *NAMES).splitlines()
        ]
        assert [name for name, _ in links] == list(NAMES)
        with running(*waits) as process:
            process.line(f"waiting for labels at {address}")
            people = [Caller(link, shortest) for _, link in links]
            done = all_work(people, process)
            for person in people:
                person.close()
            assert process.process.exitcode == 0, process.log.read_text()
    return done


def test_tasks_are_prepared_and_what_is_labelled_is_gone_on_with(
    finished: Path, rlhf: Command
) -> None:
    recipe = finished.parents[1] / "tiny.yaml"
    recipe.write_text(
        recipe.read_text() + "  asked: {kind: rankings, labeler: people, model: sft, limit: 3, "
        "completions: 2, max_new_tokens: 6, prompts: [{path: prompts.jsonl}]}\n"
    )
    told(rlhf, "run", "tiny.yaml", "--until", "ppo")
    made = told(rlhf, "label", "prepare", "runs/tiny")
    assert "stage asked has made the" in made and "0 of" in made
    label_one(finished)
    told(rlhf, "label", "tasks", "runs/tiny", "--close", "asked")
    up = {"address": "http://127.0.0.1:9", "pid": os.getpid()}  # as a server that runs says
    (finished / "labels" / "server.json").write_text(json.dumps(up))
    out = told(rlhf, "label", "start", "runs/tiny", "--people", "Ann, Ben")
    found = re.findall(r"(\w+)\thttp://127\.0\.0\.1:9/invite/\S+", out)
    assert found == ["Ann", "Ben"]
    assert len((finished / "asked" / "rankings.jsonl").read_text().splitlines()) == 1
    assert "all that runs/tiny asks people is labelled" in told(
        rlhf, "label", "prepare", "runs/tiny"
    )


def test_conversations_have_no_tasks_and_are_the_campaign_that_is_meant(
    finished: Path, rlhf: Command
) -> None:
    recipe, folder = finished.parents[1] / "tiny.yaml", finished.parents[1]
    (folder / "openings.jsonl").write_text('{"prompt": "Hello?"}\n{"prompt": "Why?"}\n')
    recipe.write_text(
        recipe.read_text() + "  talks: {kind: rankings, labeler: people, model: sft, "
        "completions: 2, max_new_tokens: 6, prompts: [{path: openings.jsonl}], "
        "people: {mode: pairs, needed: 4, conversations: {most_turns: 2}}}\n"
    )
    told(rlhf, "run", "tiny.yaml", "--until", "ppo")
    made = told(rlhf, "label", "prepare", "runs/tiny")
    assert "stage talks has live conversations in campaign talks-" in made
    assert "2 openings to begin with and up to 2 messages a conversation" in made
    assert "0 of 4 messages labelled" in made and "0 tasks" not in made
    assert "rlhf label start runs/tiny --people" in made

    # What was made beside the stage's campaign, and later, is not what is meant.
    with contextlib.closing(open_database(str(finished / "labels" / "labels.sqlite"))) as database:
        Campaigns(database).create("later", CampaignSettings(), "")
        (own, _) = Campaigns(database).list()
    (folder / "pairs.jsonl").write_text('{"prompt": "P", "chosen": "yes", "rejected": "no"}\n')
    told(rlhf, "label", "import", "runs/tiny", "pairs.jsonl")
    stats = rlhf("label", "stats", "runs/tiny")
    assert stats.out.startswith(f"{own.name}: no labels of its 0 tasks")
    choice = f"of campaign {own.name}, which stage talks asks in; --campaign takes another: "
    assert stats.err == f"{choice}later, pairs\n"
    named = rlhf("label", "stats", "runs/tiny", "--campaign", "pairs")
    assert named.out.startswith("pairs: 1 label") and named.err == ""


def label_one(run: Path) -> None:
    """Label the next task of a run as somebody does."""
    database = open_database(str(run / "labels" / "labels.sqlite"))
    [campaign] = Campaigns(database).list()
    cleo = Accounts(database).add("Cleo", "person").id
    given = Queue(database).next(cleo, campaign.id)
    assert given is not None
    said = Submission("the key of a page", [1, 2], ratings=[5, 4])
    Submissions(database).submit(given.id, cleo, said)
    database.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_makes_tasks_serves_them_and_goes_on(
    tiny_recipe: Path, rlhf: Command, running: Start
) -> None:
    import httpx

    folder, run = tiny_recipe.parent, "runs/waiting"
    (folder / "waiting.yaml").write_text(WAITING % ", needed: 4")
    (folder / "rules.md").write_text("# Short is good")
    told(rlhf, "run", "waiting.yaml", "--until", "base")
    made = told(rlhf, "label", "prepare", run)
    assert "stage rankings has made the 12 tasks of campaign rankings-" in made
    assert told(rlhf, "label", "tasks", run).splitlines()[1].split("\t")[2] == "12"
    assert not (folder / run / "labels" / "server.json").exists()
    start = ("label", "start", run, "--people", "Ann, Ben", "--port", "0", "--until", "rankings")
    with running(*start) as process:
        links = [process.line(rf"{name}\t(http://127\.0\.0\.1:\S+)")[1] for name in ("Ann", "Ben")]
        people = [Caller(link, shortest) for link in links]
        with contextlib.suppress(httpx.TransportError):  # the pages go as the command ends
            all_work(people, process)
        for person in people:
            person.close()
        process.process.join()
        assert process.process.exitcode == 0, process.log.read_text()
    who = {row["meta"]["_label"]["annotator"]["name"] for row in rankings_of(folder / run)}
    assert who == {"Ann", "Ben"}
    assert not (folder / run / "labels" / "server.json").exists()
    assert not (folder / run / "reward").exists()


def test_a_run_that_asks_nobody_is_told(tmp_path: Path, rlhf: Command) -> None:
    for command in ("prepare", "start"):
        refused = rlhf("label", command, tmp_path)
        assert refused.code == 2 and "has no stage that asks people" in refused.err
        refused = rlhf("label", command, tmp_path / "nowhere")
        assert refused.code == 2 and "no such run folder" in refused.err


def test_nobody_is_invited_to_what_can_not_go_on(tmp_path: Path, rlhf: Command) -> None:
    asks = "{kind: rankings, labeler: people, model: ./base, prompts: [{world: rm_prompts}]}"
    (tmp_path / "recipe.yaml").write_text(f"name: r\nstages:\n  pairs: {asks}\n")
    refused = rlhf("label", "start", tmp_path, "--people", "Ada", "--until", "pears")
    assert refused.code == 2 and "--until pears" in refused.err and "pairs" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


QUICKSTART = (
    "--set", "rankings.labeler=people",
    "--set", "rankings.people={overlap: 0.2, annotators_per_task: 3, poll_seconds: 0.5}",
    "--set", "rankings.limit=20",
    "--until", "reward",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_with_three_browsers(tmp_path: Path, rlhf: Command, running: Start) -> None:
    """Train the quickstart to its reward model on what three people at browsers prefer.

    `RLHF_TEST_QUICKSTART` may name a finished run of it, whose first stages are then used.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium is installed")
    from data.world.annotator import GoldAnnotator

    gold = GoldAnnotator()

    def right(prompt: str, answers: list[str]) -> list[int]:
        return dense_ranks([-gold.score(chat(prompt), answer) for answer in answers])

    recipe, run = str(ROOT / "recipes" / "quickstart.yaml"), tmp_path / "runs" / "quickstart"
    arguments: tuple[str, ...] = ("run", recipe, *QUICKSTART)
    if finished := os.environ.get("RLHF_TEST_QUICKSTART"):
        shutil.copytree(finished, run)
        arguments = (*arguments, "--from", "rankings")
    with running(*arguments) as process:
        process.line("waiting for labels by")
        with running("label", "serve", str(run), "--port", "0") as server:
            server.line("your way in")
            links = [
                line.split("\t")[1]
                for line in told(rlhf, "label", "invite", str(run), *NAMES).splitlines()
            ]
            with playwright.sync_playwright() as driver:
                start = driver.chromium.launch
                browsers = [start(executable_path=chromium, args=["--no-sandbox"]) for _ in links]
                people = [
                    Typist(browser, link, right)
                    for browser, link in zip(browsers, links, strict=True)
                ]
                done = all_work(people, process)
                for person in people:
                    person.close()
        assert process.process.exitcode == 0, process.log.read_text()
    rows = rankings_of(run)
    assert sum(done) == len(rows) and min(done) > 0
    # What was typed is what the file says: shown in another order, as Markdown, and back.
    for row in rows:
        assert row["ranks"] == right(row["prompt"][-1]["content"], row["completions"])
    assert len({tuple(row["meta"]["_label"]["order"]) for row in rows}) > 1
    quality = json.loads((run / "reward" / "quality.json").read_text())
    assert quality["n_pairs"] > 0
    assert (run / "reward" / "model" / "model.safetensors").is_file()
