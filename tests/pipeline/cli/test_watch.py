"""`rlhf watch` on a terminal: it refreshes while a process works in the run, and ends with it."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli.main import list_stages
from pipeline.cli.watch import watch
from pipeline.run.watching import Look


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at(stage: str | None, step: int) -> Look:
    state = "done" if stage is None else f"running, {step}/30, 4{step} s left, process 4711"
    sample = {"prompt": "Why [bold]?", "response": f"Since {step}.", "score": 0.5}
    rows: list[tuple[str, ...]] = [("ppo", "ppo", state, "-", "-", "sft", "-")]
    return Look(rows, stage, {"KL to the reference, nats": step / 4}, [], [sample])


def test_a_run_is_shown_until_its_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, screen = iter([at("ppo", 1), at("ppo", 2), at(None, 3)]), Terminal()
    slept: list[float] = []
    monkeypatch.setattr("pipeline.run.watching.look", lambda run: next(looks))
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    watch(Path("run"), every=3.0, html=False)
    shown = screen.getvalue()
    assert slept == [3.0, 3.0]
    assert "running, 2/30, 42 s left, process 4711" in shown
    assert "KL to the reference, nats 0.500" in shown and "Why [bold]?" in shown
    assert "no process works in it" in shown and next(looks, None) is None


def test_a_narrow_terminal_shows_the_state_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("pipeline.run.watching.look", lambda run: at(None, 3))
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    watch(Path("run"), every=3.0, html=False)
    shown = screen.getvalue()
    assert "ppo" in shown and "done" in shown and "metric" not in shown


def test_stages_are_listed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    state = "outdated: instruction: None -> '[/b]'"
    rows = [("sft", "sft", state, "2 d", "1 kB", "-", "eval/loss 1.2")]
    screen = Terminal()
    monkeypatch.setattr("pipeline.run.listing.list_run", lambda run: rows)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "120")
    list_stages(Path("run"))
    assert state in screen.getvalue()
