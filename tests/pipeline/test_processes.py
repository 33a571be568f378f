"""Many processes give what one gives, with whole and with sharded weights, in all four stages."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("spread_stages.py")
STAGES = ("pretrain", "sft", "reward", "ppo", "shared")


def words(rng: random.Random, most: int) -> str:
    return "".join(rng.choices("abcdefgh ", k=rng.randint(1, most)))


def write_inputs(folder: Path, save_policy: Callable[..., Path], tokenizer: Any) -> None:
    """Write a policy, a reward model, and rows of uneven length whose numbers are odd."""
    from reward.model import RewardModel

    rng = random.Random(0)
    policy = save_policy(tokenizer, folder / "policy", layers=2)
    RewardModel.start(policy, seed=0).save(folder / "reward")
    rows: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": words(rng, 60)} for _ in range(60)],
        "prompts": [{"prompt": words(rng, 12)} for _ in range(11)],
        "talks": [{"prompt": words(rng, 9), "completion": words(rng, 30)} for _ in range(27)],
        "rankings": [],
    }
    for number in range(27):
        k = rng.choice((2, 3, 5))
        texts = [words(rng, 9) for _ in range(k)]
        rows["rankings"].append(
            {"prompt": f"say {number}", "completions": texts, "ranks": list(range(1, k + 1))}
        )
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def start(folder: Path, size: int, *modes: str) -> list[subprocess.Popen[bytes]]:
    """Start the script on so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(size):
        many = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        with (folder / f"log-{size}-{rank}").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(folder), *modes],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONPATH": str(ROOT), **(many if size > 1 else {})},
                )
            )
    return started


def finish(folder: Path, size: int, started: list[subprocess.Popen[bytes]]) -> None:
    """Wait for processes and show the log of one that failed."""
    try:
        for rank, process in enumerate(started):
            assert process.wait(timeout=280) == 0, (folder / f"log-{size}-{rank}").read_text()[
                -4000:
            ]
    finally:
        for process in started:
            process.kill()
