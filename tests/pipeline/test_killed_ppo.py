"""PPO through the command, killed at random moments, ends bit for bit like a run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RLHF = Path(sys.executable).with_name("rlhf")
UPDATES, EVALUATED = 48, 3
KINDS = ("anywhere", "save", "save", "evaluation")
Build = Callable[..., Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc"),
]


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Build, tiny_policy: Build
) -> Path:
    """Return a folder with a policy, a reward model as an adapter on it, prompts and text."""
    from reward.learned.model import RewardModel
    from reward.learned.on_trunk import adapt, save_models

    folder, tokenizer = tmp_path_factory.mktemp("killed"), tiny_tokenizer()
    policy = folder / "policy"
    tiny_policy(tokenizer).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    model = RewardModel.start(policy, seed=1)
    trunk = adapt(model, base=str(policy), rank=2, alpha=4, targets="all-linear", seed=2)
    torch.manual_seed(3)
    for parameter in trunk.parameters("reward"):
        torch.nn.init.normal_(parameter, std=0.3)
    save_models(model, trunk, folder / "reward")
    for name, rows in (
        ("prompts", [{"prompt": f"What is {a} + {b}?"} for a in range(5) for b in range(4)]),
        ("apart", [{"prompt": f"What is {a} - {b}?"} for a in range(4) for b in range(2)]),
        ("text", [{"text": f"{a} and {b} is {a + b}."} for a in range(5) for b in range(4)]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_recipe(inputs: Path, trunk: str, processes: int) -> Path:
    """Write a recipe of PPO with all that a resume state has to hold."""
    stage = {
        "kind": "ppo", "policy": str(inputs / "policy"), "trunk": trunk,
        "reward": [
            {"model": str(inputs / "reward"), "normalize": True},
            {"rule": "length", "options": {"target": 4}, "weight": 0.5},
        ],
        "prompts": [{"path": str(inputs / "prompts.jsonl")}],
        "episodes": 8 * UPDATES, "batch_size": 8, "minibatches": 2, "epochs": 2,
        "micro_batch_size": 2, "max_prompt_tokens": 40, "max_new_tokens": 6, "temperature": 1.0,
        "end_rule": "none", "learning_rate": 3e-3, "normalize_scores": True,
        "adaptive_kl": {"horizon": 100},
        "ema_decay": 0.9, "value_warmup_updates": 1, "ptx_coefficient": 0.3,
        "pretraining_sources": [{"path": str(inputs / "text.jsonl")}],
        "evaluate_every": EVALUATED, "evaluation_prompts": [{"path": str(inputs / "apart.jsonl")}],
        "evaluation_reward": [{"rule": "length", "options": {"target": 3}}],
        "pretraining_row_tokens": 9, "save_every": 1, "sample_every": 1, "sample_count": 2,
        "bf16": False, "doctor": {"on_alarm": "warn"},
    }  # fmt: skip
    path = inputs / f"{trunk}-{processes}.yaml"
    recipe = {"name": "killed", "launch": {"processes": processes}, "stages": {"ppo": stage}}
    path.write_text(yaml.safe_dump(recipe))
    return path


@dataclass(frozen=True)
class Attempt:
    """Processes that work on a run.

    Attributes:
        ids: returns the ids of all that live.
        command: the one that was typed, None where processes were forked.
    """

    ids: Callable[[], list[int]]
    command: subprocess.Popen[bytes] | None = None

    def alive(self) -> bool:
        """Tell whether it has not ended by itself."""
        # A program that has only begun has no words in /proc yet.
        return bool(self.ids()) if self.command is None else self.command.poll() is None

    def kill(self, rng: random.Random, *, gap: float, group: bool = False) -> None:
        """Kill all processes, in any order and so many seconds apart at most.

        With `group` the process group of the command alone, which leaves those it started.
        """
        if self.command is not None and (group or len(self.ids()) == 1):
            os.killpg(self.command.pid, signal.SIGKILL)
        else:
            ids = self.ids()
            rng.shuffle(ids)
            for number in ids:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended with one of the others
                time.sleep(rng.uniform(0, gap))
        if self.command is not None:
            assert self.command.wait() == -signal.SIGKILL
        if not group:
            wait_for(lambda: not self.ids())


def type_command(recipe: Path, run: Path) -> Attempt:
    """Start `rlhf run` in a process group of its own."""
    with (run.parent / f"{run.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [str(RLHF), "run", str(recipe), "--out", str(run)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Attempt(lambda: processes_of(run), process)


def processes_of(run: Path) -> list[int]:
    """Return the ids of the processes whose command names a run folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def fork() -> Iterator[Callable[[Path, int], Attempt]]:
    """Return what starts a stage's processes without their imports: fork(run, size)."""
    script = Path(__file__).with_name("killed_ppo.py")
    server = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    sent, answers = server.stdin, server.stdout

    def start(run: Path, size: int) -> Attempt:
        key = (run / "ppo" / "work" / "key").read_text()
        sent.write(json.dumps({"run": str(run), "stage": "ppo", "key": key, "size": size}) + "\n")
        sent.flush()
        ids: list[int] = json.loads(answers.readline())
        return Attempt(lambda: [n for n in ids if Path(f"/proc/{n}").exists()])

    yield start
    sent.close()
    server.wait()
    answers.close()


def wait_for(met: Callable[[], object], alive: Callable[[], object] = lambda: True) -> None:
    while not met():
        assert alive(), "it ended before it was killed"
        time.sleep(0.001)


def saved(run: Path) -> int:
    """Return the number of updates of the newest state."""
    names = (path.name for path in (run / "ppo" / "resume").glob("step-*"))
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def evaluated(run: Path) -> int:
    """Return the bytes of the judged answers."""
    path = run / "ppo" / "evaluation.jsonl"
    return path.stat().st_size if path.is_file() else 0


def unfinished(run: Path) -> bool:
    """Tell whether a state is only half written."""
    return any((run / "ppo" / "resume").glob(".tmp-*"))


def await_moment(kind: str, attempt: Attempt, run: Path, before: int, rng: random.Random) -> None:
    """Wait for a random moment: at the start, anywhere, in a save, past an evaluation, at the end.

    But for the first kind, at least one update is saved before it.
    """
    if kind == "start":
        time.sleep(rng.uniform(0, 4))
        return
    wait_for(lambda: saved(run) > before, attempt.alive)
    if kind == "anywhere":
        log = (run / "ppo" / "metrics.jsonl").read_text().splitlines()
        row = json.loads(log[before])
        time.sleep(rng.uniform(0, 1.5) * sum(row[k] for k in row if k.startswith("time/")
                   and k != "time/episodes_per_second"))  # fmt: skip
    elif kind == "save":
        wait_for(lambda: unfinished(run), attempt.alive)
        time.sleep(rng.uniform(0, 0.02))
    elif kind == "evaluation":
        written = evaluated(run)
        wait_for(lambda: evaluated(run) > written, attempt.alive)
        time.sleep(rng.uniform(0, 0.05))
    else:
        wait_for((run / "ppo" / "value_model").is_dir, attempt.alive)
        time.sleep(rng.uniform(0, 0.1))


def finish(recipe: Path, run: Path) -> None:
    process = type_command(recipe, run).command
    assert process is not None
    told = run.parent / f"{run.name}.log"
    assert process.wait() == 0, told.read_text()[-4000:]


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without what is measured by a clock."""
    rows = map(json.loads, (run / "ppo" / "metrics.jsonl").read_text().splitlines())
    clock = ("time/", "seconds")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]


def require_same(cut: Path, whole: Path, start: Path) -> None:
    """Compare all weights that were published, and the logs; they may not be those of the start."""
    first, last = (load_file(p / "model.safetensors") for p in (start, whole / "ppo" / "model"))
    assert max(float((last[name] - first[name]).abs().max()) for name in first) > 1e-3
    published = sorted(path.relative_to(whole) for path in whole.glob("ppo/**/*.safetensors"))
    assert {path.parts[1] for path in published} >= {"model", "value_model", "best"}
    for path in published:
        ours, theirs = load_file(cut / path), load_file(whole / path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), path
    logged = rows_of(whole)
    assert rows_of(cut) == logged
    rows = [row for row in logged if "evaluation/gold" not in row]
    assert [row["step"] for row in rows] == list(range(1, UPDATES + 1))
    assert len({row["objective/kl_coefficient"] for row in rows}) > UPDATES // 2
    assert [r["step"] for r in logged if r not in rows] == [*range(0, UPDATES + 1, EVALUATED)]
    for name, lines in (
        ("samples.jsonl", 2 * UPDATES),
        ("evaluation.jsonl", 8 * (UPDATES // EVALUATED + 1)),
        ("over_optimisation.json", None),
    ):
        found, expected = ((run / "ppo" / name).read_bytes() for run in (cut, whole))
        assert found == expected, name
        assert lines is None or found.count(b"\n") == lines


@pytest.mark.parametrize(
    ("trunk", "processes", "typed"),
    [
        # Which kills hit the command itself; the others hit processes that were forked.
        pytest.param("separate", 1, range(20), id="separate-1"),
        pytest.param("separate", 2, (0, 1, 19), id="separate-2"),
        pytest.param("shared", 1, (), id="shared-1"),
        pytest.param("shared", 2, (), id="shared-2"),
    ],
)
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    trunk: str,
    processes: int,
    typed: tuple[int, ...],
    inputs: Path,
    fork: Callable[[Path, int], Attempt],
    tmp_path: Path,
) -> None:
    recipe, whole, cut = (
        write_recipe(inputs, trunk, processes),
        tmp_path / "whole",
        tmp_path / "cut",
    )
    finish(recipe, whole)
    rng = random.Random(f"{trunk} {processes}")
    kinds = ["start", "anywhere", *rng.choices(KINDS, k=17), "publish"]
    if trunk == "shared":
        kinds = kinds[1:8]
    inside = reached = 0
    for number, kind in enumerate(kinds):
        by_command = number in typed or not (cut / "ppo" / "work" / "key").is_file()
        attempt = type_command(recipe, cut) if by_command else fork(cut, processes)
        before = saved(cut)
        try:
            await_moment(kind, attempt, cut, before, rng)
        except BaseException:
            if attempt.alive():
                attempt.kill(rng, gap=0)
            raise
        # The first kill leaves the processes that the command has started to themselves.
        attempt.kill(rng, gap=0 if kind == "save" else 0.02, group=number == 1)
        inside += unfinished(cut)
        assert kind == "publish" or before <= saved(cut) < UPDATES
        assert saved(cut) > before or kind in ("start", "publish")
        reached = max(reached, saved(cut))
    print(f"{len(kinds)} kills, {inside} inside a save, last after update {reached}")
    assert inside >= kinds.count("save") // 4
    finish(recipe, cut)
    require_same(cut, whole, inputs / "policy")
