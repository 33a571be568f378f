"""`rlhf eval`, killed where it has done a part, goes on to the files of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RLHF = Path(sys.executable).with_name("rlhf")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    """Evaluate three checkpoints on prompts, texts and a task, into a folder."""
    words = (
        "eval base sft ppo --prompts world:eval_prompts --limit 60 --max-new-tokens 24 "
        f"--texts held.txt --suite suite.yaml --out {out}"
    )
    with (folder / f"{out}.log").open("ab") as log:
        return subprocess.Popen(
            [str(RLHF), *words.split()], cwd=folder, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def finish(folder: Path, out: str) -> None:
    code = start(folder, out).wait()
    assert code == 0, (folder / f"{out}.log").read_text()[-4000:]


def ready(folder: Path, out: str) -> int:
    """Return how many parts are kept."""
    return len([*(folder / out / "cache").glob("*.json")])


def test_killed_thrice_it_leaves_the_same_files(
    tmp_path: Path, tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path]
) -> None:
    for seed, name in enumerate(("base", "sft", "ppo")):
        save_policy(tiny_tokenizer(), tmp_path / name, seed=seed, context=256)
    rows = [{"question": f"What is {i} + 1?", "choices": [f"{i + 1}", "no"], "answer": 0}
            for i in range(20)]  # fmt: skip
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {"tasks": [{"kind": "choices", "source": {"path": "sums.jsonl"}}]}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    (tmp_path / "held.txt").write_text("The miller lives by the river.\n\nAda bakes bread.\n")
    finish(tmp_path, "whole")
    parts = ready(tmp_path, "whole")
    assert parts >= 8
    for share in (0.1, 0.3, 0.6):  # of the parts, after which it is killed
        process = start(tmp_path, "cut")
        while ready(tmp_path, "cut") <= share * parts:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "cut" / "evaluation.json").exists()
    finish(tmp_path, "cut")
    assert "kept from before" in (tmp_path / "cut.log").read_text()
    for name in ("samples.jsonl", "texts.jsonl", "tasks.jsonl", "evaluation.json"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == whole, name
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in ("cut", "whole")]
    for report in reports:
        del report["created"], report["recipe"]
    assert reports[0] == reports[1]
