"""What experiments over several seeds have in common: runs, stages they share, intervals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data import intervals


def rlhf_run(recipe: Path, run: Path, *options: str) -> None:
    """Run a recipe into a folder; what is done there is not repeated."""
    rlhf = Path(sys.executable).with_name("rlhf")
    command = [str(rlhf), "run", str(recipe), "--out", str(run), "--quiet", *options]
    subprocess.run(command, check=True)


def report_of(run: Path) -> dict[str, Any]:
    """Return the report of a finished run."""
    found: dict[str, Any] = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    return found


def copy_stages(source: Path, run: Path, stages: Sequence[str]) -> None:
    """Copy finished stages into a run that shall start from the same weights."""
    run.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if not (run / stage).exists():
            shutil.copytree(source / stage, run / stage)


def shared_stages(source: Path, run: Path, stages: Sequence[str]) -> list[str]:
    """Copy finished stages as `copy_stages` does, and return the options that keep their seeds."""
    copy_stages(source, run, stages)
    own = yaml.safe_load((source / "recipe.yaml").read_text(encoding="utf-8"))["seed"]
    return [part for stage in stages for part in ("--set", f"{stage}.seed={own}")]


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval over seeds (Student's t); no width of one seed."""
    found = intervals.over_seeds(values)
    assert found.value is not None, "there are no seeds"
    low, high = found.ci95 or [found.value] * 2
    return found.value, low, high


def in_words(values: Sequence[float]) -> str:
    """Return a mean and its interval as text; one seed has none."""
    mean, low, high = over_seeds(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
