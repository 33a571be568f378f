"""The processes of a stage end with the command that started them, and the next one waits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.errors import RunLockedError
from pipeline.run.worker_lifetime import STARTER, await_orphans, ends_with_starter, starter

ROOT = Path(__file__).parents[3]
WORKER = """
import sys, time
from pathlib import Path
from pipeline.run.worker_lifetime import ends_with_starter
with ends_with_starter(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "working").touch()
    time.sleep(60)
"""


def work(run: Path, started_by: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), STARTER: started_by}
    return subprocess.Popen([sys.executable, "-c", WORKER, str(run)], env=environment)


def named(process: subprocess.Popen[bytes]) -> str:
    """Return what names a process, as it would itself."""
    return f"{process.pid} {psutil.Process(process.pid).create_time()}"


def test_a_process_ends_soon_after_its_starter_and_holds_the_run_until_then(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as parent:
        worker = work(tmp_path, named(parent))
        while not (tmp_path / "working").exists():
            assert worker.poll() is None
            time.sleep(0.01)
        with pytest.raises(RunLockedError, match="in use by processes of an `rlhf run` that was"):
            await_orphans(tmp_path, seconds=0.3)
        parent.kill()
    await_orphans(tmp_path, seconds=30)
    assert worker.wait() == 1


def test_a_number_that_was_given_out_again_is_no_starter(tmp_path: Path) -> None:
    number, _, born = starter().partition(" ")
    assert int(number) == os.getpid()
    worker = work(tmp_path, f"{number} {float(born) - 10}")
    assert worker.wait() == 1
    assert not (tmp_path / "working").exists()


def test_without_a_starter_nothing_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STARTER, raising=False)
    with ends_with_starter(tmp_path):
        await_orphans(tmp_path, seconds=0)
    monkeypatch.setenv(STARTER, starter())
    with (
        ends_with_starter(tmp_path),
        pytest.raises(RunLockedError),
    ):
        await_orphans(tmp_path, seconds=0)
    await_orphans(tmp_path, seconds=0)
