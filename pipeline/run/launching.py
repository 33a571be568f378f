"""Starts a stage on many processes through `accelerate launch`, and tells what became of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import Interrupted, StageFailedError, UsageError, nearest
from data.plain_yaml import parse
from data.small_files import read_file
from data.storage import open_file, storage_errors, write_atomically
from data.words import counted
from pipeline.contract.console import Console
from pipeline.contract.settings import LaunchSettings
from pipeline.contract.stop import StopFlag
from pipeline.recipe.shipped import find_file, shipped_files
from pipeline.run.unfinished import Attempt
from pipeline.run.worker_lifetime import STARTER, starter

STOP = "stop"
"""File in the stage's `work/` that asks its processes to stop."""
RESULTS = "results"
"""Folder there, with what became of each of them: outcome, or error."""
_FAILURE = re.compile(r"rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)")
"""torch's summary of a failed process; the first one is the cause."""


def run_launched(
    attempt: Attempt, launch: LaunchSettings, *, console: Console, stop: StopFlag
) -> dict[str, Any]:
    """Run a stage as `accelerate launch --no_python rlhf run-stage ...` and wait for it.

    Returns:
        What `run_in_process` returned on rank 0.

    Raises:
        Interrupted: a signal asked to stop.
        StageFailedError: a process raised or was killed.
        UsageError: the accelerate configuration can't be used.
    """
    stage, folder, log = attempt.stage, attempt.folder, attempt.folder / "stage.log"
    (folder / "work" / STOP).unlink(missing_ok=True)
    shutil.rmtree(folder / "work" / RESULTS, ignore_errors=True)
    command = [
        *launch_command(launch), "run-stage", str(folder.parent.resolve()), stage,
        "--key", attempt.digest, *_plugin_options(), *(["--quiet"] if console.quiet else []),
    ]  # fmt: skip
    elsewhere = _machines(launch) - 1
    if elsewhere:
        other = command if console.quiet else [*command, "--quiet"]
        console.say(
            f"  start on {counted(elsewhere, 'other machine')}, --machine_rank 1 and so on:"
        )
        console.say(f"  {shlex.join(_with_machine_rank(other, 1))}")
    start = log.stat().st_size if log.exists() else 0
    code = _wait(command, folder, log, stop)
    outcome = _outcome(folder)
    if outcome.get("error"):
        raise StageFailedError(f"{outcome['error']}")
    if code == 0 and "metrics" in outcome:
        return outcome
    if outcome.get("interrupted"):
        raise Interrupted(f"{outcome['interrupted']}")
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        what = first_failure(file.read())
    what = f"stage {stage} on {launch.processes} processes ended: {what or f'exit code {code}'}"
    if stop.asked:
        raise Interrupted(f"{what}, before it had saved")
    raise StageFailedError(
        f"{what}; its log is {log}, its last checkpoint is kept and the same command goes on there"
    )


def _wait(command: list[str], folder: Path, log: Path, stop: StopFlag) -> int:
    """Run a launcher to its end and return its exit code.

    A signal is passed on as a file: the launcher, given one, kills after 30 seconds, and a step may
    take longer.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", STARTER: starter()}
    with storage_errors(log), open(log, "a", encoding="utf-8", opener=open_file) as file:
        process = subprocess.Popen(command, stderr=file, env=environment, start_new_session=True)
        try:
            asked = False
            while process.poll() is None:
                time.sleep(0.2)
                if stop.asked and not asked:
                    asked = True
                    (folder / "work" / STOP).touch()
        except BaseException:
            # Stopped at once; the processes it started see that it is gone, and end.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return process.returncode


def write_result(folder: Path, rank: int, content: Mapping[str, Any]) -> None:
    """Leave what became of a stage on one of its processes, in a file of its own.

    Raises:
        StorageError: it can't be written.
    """
    path = folder / "work" / RESULTS / f"{rank}.json"
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(content))


def _outcome(folder: Path) -> dict[str, Any]:
    """Return what rank 0 left, unless another failed on its own: then that."""
    results: dict[int, dict[str, Any]] = {}
    for path in (folder / "work" / RESULTS).glob("*.json"):
        results[int(path.stem)] = json.loads(path.read_text(encoding="utf-8"))
    failed = [rank for rank in sorted(results) if "error" in results[rank]]
    return results[failed[0]] if failed else results.get(0, {})


def _plugin_options() -> list[str]:
    """Return what makes another process load the same plugins, or refuse if they changed."""
    from reward.plugins import plugins

    return [
        argument
        for plugin in plugins()
        for argument in ("--plugin", str(plugin.path), "--plugin-sha256", plugin.sha256)
    ]


def first_failure(log: str) -> str | None:
    """Tell from torch's summary in a log which process failed first, and how."""
    failure = _FAILURE.search(log, max(0, log.rfind("Root Cause")))
    if failure is None:
        return None
    rank, code = failure.groups()
    if int(code) >= 0:
        return f"the process of rank {rank} failed with exit code {code}"
    name = signal.Signals(-int(code)).name
    hint = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
    return f"the process of rank {rank} was killed by {name}{hint}"


def launch_command(launch: LaunchSettings) -> list[str]:
    """Return the command that starts `rlhf` on every process, without its arguments.

    Raises:
        UsageError: the accelerate configuration is missing or starts one process.
    """
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--no_python",
        "--num_processes", str(launch.processes),
    ]  # fmt: skip
    if launch.config is None:
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        # On a CPU, `--cpu` would start one process; this starts all, `run_as_rank` says on what.
        command += ["--main_process_port", "0", "--multi_gpu"]
    else:
        command += ["--config_file", str(find_file(Path(launch.config)))]
        if _machines(launch) == 1:
            command += ["--main_process_port", "0"]
    return [*command, str(Path(sys.executable).with_name("rlhf"))]


def require_launchable(launch: LaunchSettings) -> None:
    """Refuse, by a `UsageError`, an accelerate configuration that can't start the processes."""
    if launch.config is not None:
        _read(launch.config) if launch.processes == 1 else _machines(launch)


def shards_weights(launch: LaunchSettings) -> bool:
    """Tell whether no process of a launch holds all weights, by its accelerate configuration."""
    if launch.config is None or launch.processes == 1:
        return False
    return _read(launch.config)[0] == "FSDP"


def _read(config: str) -> tuple[str, int]:
    """Return what an accelerate configuration starts, and on how many machines."""
    path = find_file(Path(config))
    if not path.is_file():
        near = nearest(config, shipped_files())
        raise UsageError(
            f"launch.config: {config}: no such file; give an accelerate configuration.{near}"
        )
    try:
        content, _ = parse(read_file(path).decode(), lambda line: f"{path}:{line}")
        return str(content["distributed_type"]), int(content.get("num_machines", 1))
    except (OSError, OverflowError, TypeError, KeyError, ValueError) as error:
        raise UsageError(
            f"launch.config: {config} is no accelerate configuration; `accelerate config` "
            "makes one, and `rlhf copy launch/ddp.yaml` copies one"
        ) from error


def _machines(launch: LaunchSettings) -> int:
    """Return the number of machines that an accelerate configuration is for, having checked it."""
    if launch.config is None:
        return 1
    kind, machines = _read(launch.config)
    if kind in ("NO", "MULTI_CPU"):
        raise UsageError(
            f"launch.config: distributed_type {kind} in {launch.config} starts one process; "
            "use MULTI_GPU, on CPUs too"
        )
    if launch.processes % machines:
        raise UsageError(
            f"launch.processes: {launch.processes} processes can't be shared by the {machines} "
            f"machines of {launch.config}; make it a multiple"
        )
    return machines


def _with_machine_rank(command: list[str], rank: int) -> list[str]:
    place = command.index("--no_python")
    return [*command[:place], "--machine_rank", str(rank), *command[place:]]
