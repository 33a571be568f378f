"""Launching a stage on many processes: configurations, refusals, and what is said of a failure."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from data.errors import Interrupted, StageFailedError, UsageError
from pipeline.contract.console import Console
from pipeline.contract.settings import LaunchSettings
from pipeline.contract.stop import STOPPING, StopFlag
from pipeline.run.launching import first_failure, launch_command, run_launched
from pipeline.run.unfinished import Attempt

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "recipes" / "launch").glob("*.yaml"))


def test_the_configurations_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"ddp", "fsdp2", "fsdp2_two_machines", "deepspeed_zero2", "deepspeed_zero3"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path: Path) -> None:
    """As `accelerate launch` does: the file, then the arguments that it makes of it."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "dee": "DEEPSPEED", "fsd": "FSDP"}[path.stem[:3]]
    assert config.distributed_type.value == kind
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(path), "--num_processes", "4", "--no_python", "rlhf"]
    )
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.num_processes == 4
    assert (arguments.use_fsdp, arguments.use_deepspeed, arguments.multi_gpu) == (
        kind == "FSDP", kind == "DEEPSPEED", kind == "MULTI_GPU",
    )  # fmt: skip
    if kind == "FSDP":
        assert arguments.fsdp_version == 2 and not arguments.fsdp_cpu_ram_efficient_loading
    if kind == "DEEPSPEED":
        assert arguments.zero_stage == int(path.stem[-1])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_handed_on(path: Path) -> None:
    command = launch_command(LaunchSettings(processes=4, config=str(path)))
    place = command.index("--config_file")
    assert command[place + 1] == str(path)
    assert command[command.index("--num_processes") + 1] == "4"
    # On one machine any free port; several machines must agree on the one of the file.
    assert ("--main_process_port" in command) == ("two_machines" not in path.stem)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("distributed_type: MULTI_CPU\n", "starts one process; use MULTI_GPU"),
        ("distributed_type: 'NO'\n", "starts one process"),
        ("[1, 2]\n", "is no accelerate configuration"),
        ("num_machines: 2\n", "is no accelerate configuration"),
        ("distributed_type: FSDP\nnum_machines: 3\n", "4 processes can't be shared by the 3"),
    ],
)
def test_unusable_configurations_are_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "launch.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        launch_command(LaunchSettings(processes=4, config=str(path)))


def test_adapters_on_sharded_weights_are_refused_before_anything_runs(
    tmp_path: Path, rlhf: Callable[..., Any]
) -> None:
    launch = f"{{processes: 2, config: {ROOT / 'recipes' / 'launch' / 'fsdp2.yaml'}}}"
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n"
    )
    stage = "kind: reward, model: org/model, train: [{path: pairs.jsonl}], lora: {rank: 2}"
    (tmp_path / "r.yaml").write_text(f"launch: {launch}\nstages: {{rm: {{{stage}}}}}\n")
    refused = rlhf("validate", "r.yaml")
    assert refused.code == 2
    assert "stage rm: its adapters (`lora`) need one whole model a process" in refused.err
    assert rlhf("validate", "r.yaml", "--set", "launch.processes=1").code == 0
    assert rlhf("validate", "r.yaml", "--set", "stages.rm.lora=null").code == 0


SUMMARY = """
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 11)
Root Cause (first observed failure):
[0]:
  rank      : 3 (local_rank: 1)
  exitcode  : {code} (pid: 12)
"""


@pytest.mark.parametrize(
    ("code", "what"),
    [(-9, "rank 3 was killed by SIGKILL"), (-11, "SIGSEGV"), (1, "rank 3 failed with exit code 1")],
)
def test_the_process_that_failed_first_is_named(code: int, what: str) -> None:
    assert what in str(first_failure(SUMMARY.format(code=code)))
    assert first_failure("nothing of the kind") is None


# What one waits for, who stands for the processes of a stage

START = """
import json, os, pathlib, signal, sys, time
work = pathlib.Path(sys.argv[2]) / sys.argv[3] / "work"
(work / "pid").write_text(str(os.getpid()))
def leave(rank, **content):
    (work / "results").mkdir(exist_ok=True)
    (work / "results" / f"{rank}.json").write_text(json.dumps(content))
def await_stop():
    while not (work / "stop").exists():
        time.sleep(0.02)
"""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what launches a script in place of the processes of stage `a`."""
    work = tmp_path / "a" / "work"
    (work / "results").mkdir(parents=True)
    (work / "results" / "0.json").write_text('{"error": "of an earlier start"}')
    (work / "stop").touch()

    def launch(script: str, stop: StopFlag) -> dict[str, Any]:
        command = [sys.executable, "-c", START + script]
        monkeypatch.setattr("pipeline.run.launching.launch_command", lambda _: command)
        return run_launched(
            Attempt(tmp_path / "a", "key"), LaunchSettings(processes=2),
            console=Console(quiet=True), stop=stop,
        )  # fmt: skip

    return launch


def asked() -> StopFlag:
    return StopFlag(signum=signal.SIGINT)


def test_a_signal_reaches_the_processes_without_one_that_kills_them(
    launched: Callable[..., Any],
) -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
await_stop()
time.sleep(0.5)  # a step that takes its time
leave(0, interrupted="stage a stopped after step 3")
"""
    with pytest.raises(Interrupted, match=r"^stage a stopped after step 3$"):
        launched(script, asked())


def test_a_stop_that_saved_nothing_does_not_claim_it(launched: Callable[..., Any]) -> None:
    with pytest.raises(Interrupted, match=r"ended: exit code 7, before it had saved$"):
        launched("await_stop(); sys.exit(7)", asked())


def test_a_stage_that_was_done_before_it_saw_the_signal_is_done(
    launched: Callable[..., Any],
) -> None:
    assert launched("await_stop(); leave(0, metrics={})", asked()) == {"metrics": {}}
    assert launched("leave(0, metrics={})", StopFlag()) == {"metrics": {}}


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("leave(1, error='row 7 is bad'); sys.exit(1)", "^row 7 is bad$"),
        ("leave(1, error='b'); leave(0, error='a'); sys.exit(1)", "^a$"),
        ("leave(0, metrics={}); leave(1, error='row 7'); sys.exit(1)", "^row 7$"),
        ("sys.exit(5)", r"on 2 processes ended: exit code 5; its log is .*same command goes on"),
    ],
)
def test_the_process_that_failed_is_heard_whichever_it_is(
    launched: Callable[..., Any], script: str, told: str
) -> None:
    with pytest.raises(StageFailedError, match=told):
        launched(script, StopFlag())


def test_a_second_signal_ends_the_processes_at_once(
    launched: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def signals() -> None:
        while not (tmp_path / "a/work/pid").exists():
            time.sleep(0.02)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    thread = threading.Thread(target=signals)
    with StopFlag().installed() as stop, pytest.raises(KeyboardInterrupt):
        thread.start()
        launched("time.sleep(600)", stop)
    thread.join()
    assert capfd.readouterr().err.strip() == STOPPING
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "a/work/pid").read_text()), 0)


STEPS = 60


@pytest.fixture
def recipe(
    tmp_path: Path, tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path]
) -> Path:
    policy = save_policy(tiny_tokenizer(), layers=2)
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"line {i} of many"}) + "\n" for i in range(80)))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
stages:
  base:
    kind: pretrain
    model: {policy}
    train: [{{path: {text}}}]
    steps: {STEPS}
    context_length: 32
    batch_size: 4
    learning_rate: 1.0e-3
    log_every: 1
    save_every: 5
    bf16: false
"""
    )
    return path


def typed(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(sys.executable).with_name("rlhf")), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def process_of(rank: int, run: Path) -> int:
    """Return the id of the process of a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in command and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise LookupError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_processes_that_are_asked_to_stop_save_what_is_claimed(
    tmp_path: Path, recipe: Path, number: int
) -> None:
    run = tmp_path / "stopped"
    arguments = ("run", str(recipe), "--out", str(run), "--set", "launch.processes=2")
    running = typed(*arguments, "--set", "base.steps=2000")
    while not list((run / "base" / "resume").glob("step-*")):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    running.send_signal(number)
    said, _ = running.communicate()
    assert running.returncode == 130
    found = re.search(r"stage base stopped after step (\d+); its last whole checkpoint is", said)
    assert found is not None, said
    assert f"checkpoint is of step {found[1]}; to go on: rlhf run {recipe} --out {run}" in said
    assert (run / "base" / "resume" / f"step-{int(found[1]):08d}" / "complete.json").is_file()
    planned, _ = typed(*arguments, "--set", "base.steps=2000", "--dry-run").communicate()
    assert "base: resume" in planned


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_the_run_which_goes_on_on_one(tmp_path: Path, recipe: Path) -> None:
    sharded = ["--set", "launch.processes=2", "--set", "launch.config=recipes/launch/fsdp2.yaml"]
    run = tmp_path / "killed"
    running = typed("run", str(recipe), "--out", str(run), *sharded)
    while not list((run / "base" / "resume").glob("step-*")):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    os.kill(process_of(1, run), signal.SIGKILL)
    said, _ = running.communicate()
    assert running.returncode != 0
    assert "the process of rank 1 was killed by SIGKILL" in said
    assert "its last checkpoint is kept" in said
    for target, name in ((run, "killed"), (tmp_path / "whole", "whole")):
        done = typed("run", str(recipe), "--out", str(target))
        said, _ = done.communicate()
        assert done.returncode == 0, said
        assert ("going on after step" in said) == (name == "killed")
    one, other = (
        load_file(tmp_path / name / "base" / "model" / "model.safetensors")
        for name in ("whole", "killed")
    )
    for name, tensor in one.items():
        assert (other[name] - tensor).abs().max() < 1e-5, name
    rows = (run / "base" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [2, 3])
def test_a_launch_under_deepspeed_ends_in_the_weights_of_one_process(
    tmp_path: Path, recipe: Path, stage: int
) -> None:
    pytest.importorskip("deepspeed")
    config = f"launch.config=recipes/launch/deepspeed_zero{stage}.yaml"
    ways = {"one": [], "two": ["--set", "launch.processes=2", "--set", config]}
    shorter = ["--set", "base.steps=10", "--set", "base.max_gradient_norm=0.5"]
    for name, more in ways.items():
        done = typed("run", str(recipe), "--out", str(tmp_path / name), *shorter, *more)
        said, _ = done.communicate()
        assert done.returncode == 0, said
    one, two = (load_file(tmp_path / n / "base" / "model" / "model.safetensors") for n in ways)
    for name, tensor in one.items():
        assert (two[name] - tensor).abs().max() < 1e-5, name
