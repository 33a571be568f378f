"""Two processes on the same global batch give what one gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

RUN = """
import json, sys
import torch
torch.set_num_threads(1)
from pipeline.ppo.assemble import assemble
from pipeline.ppo.loop import run_update
from pipeline.ppo.prompts import PreparedPrompt
from pipeline.ppo.ranks import Ranks, make_accelerator
from pipeline.ppo.settings import Hyperparameters
from pipeline.models import load_tokenizer

class Length:
    name = "length"
    def score(self, prompts, responses):
        return [len(text) / 20 for text in responses]

folder, value = sys.argv[1:]
ppo = assemble(
    policy_source=folder, reference_source=None, scorers=[(Length(), 1.0)],
    value_source=folder if value == "separate" else None, tokenizer=load_tokenizer(folder),
    prompts=[PreparedPrompt("?", [60 + i] * (1 + i % 4)) for i in range(10)],
    pretraining=[[40 + i + j for j in range(3 + i)] for i in range(8)],
    hyper=Hyperparameters(
        episodes=24, batch_size=8, epochs=2, max_new_tokens=6, temperature=1.0,
        learning_rate=1e-3, micro_batch_size=3, ptx_coefficient=0.3, normalize_scores=True,
        entropy_coefficient=0.01, value_warmup_updates=1,
    ),
    ranks=Ranks(make_accelerator(bf16=False), 0),
)
rows = [run_update(ppo).metrics for _ in range(3)]
if ppo.ranks.rank == 0:
    print(json.dumps(rows))
"""


def metrics(script: Path, folder: Path, value: str, processes: int) -> list[dict[str, float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), value],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=common
            if processes == 1
            else {
                **common,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(processes)
    ]
    outputs = [process.communicate(timeout=240) for process in running]
    assert all(process.returncode == 0 for process in running), outputs[0][1][-3000:]
    found: list[dict[str, float]] = json.loads(outputs[0][0].splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("value", ["separate", "shared"])
def test_two_processes_give_the_figures_of_one(
    tmp_path: Path, tiny_tokenizer: Callable[..., Any], save_policy: Callable[..., Path], value: str
) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    folder = save_policy(tiny_tokenizer())
    one, two = (metrics(script, folder, value, processes) for processes in (1, 2))
    assert len(one) == len(two) == 3
    for ours, theirs in zip(one, two, strict=True):
        for name, figure in ours.items():
            if not name.startswith("time/"):
                assert theirs[name] == pytest.approx(figure, abs=1e-5, rel=1e-4), name
