"""The README's three jobs with a wheel: `jobs.py` does them, and here is what they must come to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
JOBS = Path(__file__).with_name("jobs.py")


def test_three_users_do_their_jobs_with_a_wheel(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, JOBS, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    card = (out / "engineer/shared/desk/README.md").read_text()
    assert "license: cc0-1.0" in card and "Wins against `sft`" in card
    labels = (out / "lead/labels").rglob("*.jsonl")
    rows = [json.loads(line) for path in labels for line in path.read_text().splitlines()]
    assert rows and (out / "lead/runs/mine/reward/quality.json").is_file()
    judged = json.loads((out / "evaluator/both/evaluation.json").read_text())
    assert list(judged["checkpoints"]) == ["start", "desk"] and judged["prompts"]["n"] == 8
    assert (out / "jobs.md").read_text().count("\n") > 15
