"""Live conversations from the command line to a reward model, at browsers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.records import Ranking

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
RECIPE = """\
  talks:
    {kind: rankings, labeler: people, model: sft, prompts: [{path: prompts.jsonl}], completions: 2,
     max_new_tokens: 8, people: {mode: pairs, needed: 4, poll_seconds: 0.2,
     conversations: {against: ppo, most_turns: 2}}}
  learned:
    {kind: reward, model: sft, rankings: talks, heldout_share: 0.3, prompts_per_step: 2,
     learning_rate: 1e-3, save_every: 0}
"""


class Talker:
    """A person at a browser who talks, and picks by keys."""

    def __init__(self, browser: Any, link: str, **size: Any) -> None:
        self.page = browser.new_page(**size)
        self.page.set_default_timeout(180_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(link)
        self.page.locator("button.primary").press("Enter")
        self.page.wait_for_url(lambda url: url.endswith("/guidelines"))
        self.page.locator("#accept").press("Enter")
        self.page.wait_for_url(lambda url: url.endswith("/talk"))

    def write(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        self.page.locator("#text").press("Control+Enter")

    def rank(self, key: str = "2") -> list[str]:
        """Wait for the answers, say which is better, and return them."""
        self.page.wait_for_url(lambda url: "/t/" in url)
        answers = self.page.locator("article.answer .text").all_inner_texts()
        self.page.keyboard.press(key)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(lambda url: url.endswith("/talk"))
        assert not self.errors
        return [str(text) for text in answers]


@pytest.fixture
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recipe_goes_on_from_conversations_to_a_reward_model(
    finished: Path, rlhf: Command, running: Any, chromium: Any
) -> None:
    recipe = finished.parents[1] / "tiny.yaml"
    recipe.write_text(recipe.read_text() + RECIPE)
    told = rlhf("run", "tiny.yaml", "--until", "ppo")
    assert told.code == 0 and "run" not in told.err
    start = ("label", "start", "runs/tiny", "--people", "Ada,Bo", "--port", "0")
    with running(*start) as process:
        links = [process.line(rf"{name}\t(http://127\.0\.0\.1:\S+)")[1] for name in ("Ada", "Bo")]
        process.line("waiting for labels at")
        ada = Talker(chromium, links[0], viewport={"width": 1280, "height": 720})
        bo = Talker(chromium, links[1], viewport={"width": 390, "height": 844}, has_touch=True)
        ada.page.keyboard.press("Escape")
        ada.write("What is 1 + 2?")
        bo.write("<b>Hello</b>")
        first = ada.rank("1")
        assert first[0].strip() in ada.page.locator(".turn.assistant .text").inner_text()
        bo.rank("6")
        ada.write("Sure?")
        bo.write("Why?")
        ada.rank()
        # The last label that is needed: the pages go as the command ends.
        bo.page.wait_for_url(lambda url: "/t/" in url)
        bo.page.keyboard.press("7")
        bo.page.keyboard.press("Enter")
        process.process.join()
        assert process.process.exitcode == 0, process.log.read_text()
    text = (finished / "talks" / "rankings.jsonl").read_text(encoding="utf-8")
    rows = [Ranking(**json.loads(line)) for line in text.splitlines()]
    assert sorted(len(row.prompt) for row in rows) == [1, 1, 3, 3]
    assert all(sorted(row.policies) == ["ppo", "sft"] for row in rows)
    assert {row.meta["_label"]["annotator"]["name"] for row in rows} == {"Ada", "Bo"}
    assert (finished / "learned" / "model" / "model.safetensors").is_file()
    exported = rlhf("label", "export", "runs/tiny", "--what", "hh", "--out", "out")
    assert "hh/train.jsonl: 4 rows" in exported.out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_answers_after_it_is_started_again(
    finished: Path, rlhf: Command, running: Any, chromium: Any
) -> None:
    (finished / "openings.jsonl").write_text('{"prompt": "What is 3 + 3?"}\n')
    talks = (
        "label", "converse", "runs/tiny", "--model", "sft", "--openings",
        "runs/tiny/openings.jsonl", "--answers", "3", "--mode", "rank", "--max-new-tokens", "30",
    )  # fmt: skip
    with running("label", "serve", "runs/tiny", "--port", "0") as server:
        address = server.line(r"serving .* at (http://127\.0\.0\.1:\d+)")[1]
        with running(*talks) as worker:
            worker.line("answering in campaign conversations")
            [link] = rlhf("label", "invite", "runs/tiny", "Ada").out.splitlines()
            ada = Talker(chromium, link.split("\t")[1])
            ada.page.locator("body").press("1")
            assert ada.page.locator("#text").input_value() == "What is 3 + 3?"
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()
            ada.page.locator("#send").click()
            ada.page.get_by_text("Nobody answers just now").wait_for()
        with running(*talks) as worker:
            ada.page.wait_for_url(lambda url: "/t/" in url)
            for place, tier in enumerate("123"):
                ada.page.keyboard.press(f"Shift+{'ABC'[place]}")
                ada.page.keyboard.press(tier)
            best = ada.page.locator("article.answer .text").first.inner_text()
            ada.page.keyboard.press("Enter")
            ada.page.wait_for_url(lambda url: url.endswith("/talk"))
            assert best.strip() in ada.page.locator(".turn.assistant .text").inner_text()
            assert worker.interrupt() == 130
            assert re.search("1 message answered", worker.log.read_text())
        assert not ada.errors and address
