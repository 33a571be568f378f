"""The checks for a GPU: what runs there is written down as it comes, whatever becomes of a step."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("run.sh")


@pytest.fixture(scope="module")
def steps() -> Any:
    place = SCRIPT.with_name("steps.py")
    spec = importlib.util.spec_from_file_location("steps", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture
def given(steps: Any, tmp_path: Path) -> argparse.Namespace:
    (tmp_path / "scratch").mkdir()
    return steps.arguments(
        ["--device", "cpu", "--small", "--out", str(tmp_path), "--scratch", f"{tmp_path}/scratch"]
    )


def instead(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Have a step be this text for a shell; its arguments are the script and the options."""
    shell = folder / "python"
    shell.write_text(f"#!/bin/sh\n{text}\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))


def test_the_steps_and_their_limits(steps: Any) -> None:
    names = list(steps.STEPS)
    assert names[0] == "matrix products"  # the others tell their share of it
    assert names.index("quickstart") == 2 and names[-1].startswith("greedy")
    assert all(steps.LEAST < limit <= 150 for limit, _ in steps.STEPS.values())
    assert steps.arguments([]).minutes == 10
    assert {"SmolLM2", "1.1B", "small"} == set(steps.SHAPES)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("echo; echo RuntimeError: no kernel >&2; exit 3", "failed: RuntimeError: no kernel"),
        ("exit 4", "ended with 4"),
        ("sleep 60 & sleep 60", "not done after 1 s"),
    ],
)
def test_a_step_that_fails_is_one_line(
    steps: Any, given: Any, tmp_path: Path, monkeypatch: Any, text: str, state: str
) -> None:
    instead(monkeypatch, tmp_path, text)
    line = steps.run_step(given, "quickstart", 1)
    assert (line["step"], line["state"], line["figures"]) == ("quickstart", state, {})


def test_what_is_known_is_written_after_each_step(
    steps: Any, given: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    result = given.scratch / "result.json"
    instead(monkeypatch, tmp_path, f"""echo '{{"x": 0.25, "trial": "True"}}' > {result}""")
    lines = [steps.run_step(given, "generation, SmolLM2", 5)]
    steps.write(tmp_path, {"device": "cpu"}, lines)
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == lines
    table = (tmp_path / "results.md").read_text()
    assert "| generation, SmolLM2 | ok |" in table and "x 0.25; trial True" in table


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_rehearsal(steps: Any, tmp_path: Path) -> None:
    command = [str(SCRIPT), "--device", "cpu", "--small", "--minutes", "35", "--out", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, text=True)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, log[-4000:]
    lines = json.loads((tmp_path / "results.json").read_text())["steps"]
    assert [line["step"] for line in lines] == list(steps.STEPS)
    assert all(line["state"] == "ok" and line["figures"] for line in lines)
