"""Two processes take the same steps as one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = """
import random, sys

import torch
from accelerate import Accelerator

from data.records import Ranking
from reward.batching import encode_rankings
from reward.model import RewardModel
from reward.training import Hyperparameters, RankingTrainer

torch.set_num_threads(1)
source, target = sys.argv[1:]
rng = random.Random(0)
rows = []
for number in range(21):  # the last step has 5 prompts: an odd number for two processes
    k = rng.choice((2, 3, 5))
    texts = ["".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(k)]
    rows.append(Ranking(f"say {number}", texts, list(range(1, k + 1))))
model = RewardModel.start(source, seed=0)
examples, _ = encode_rankings(rows, encoder=model.encoder)
hyper = Hyperparameters(
    epochs=2, prompts_per_step=8, tokens_per_micro_batch=120, learning_rate=1e-2
)
trainer = RankingTrainer(
    module=model.module, examples=examples, pad_id=model.pad_id, hyper=hyper, seed=0,
    accelerator=Accelerator(cpu=True),
)
trainer.train(log=lambda step, metrics: None)
scores = trainer.score([ids for e in examples for ids in e.sequences])
assert len(scores) == sum(len(e.sequences) for e in examples)
state = trainer.weights()
if trainer.accelerator.is_main_process:
    print("processes:", trainer.accelerator.num_processes)
    model.save(target, state=state)
    own = model.raw_scores([ids for e in examples for ids in e.sequences])
    assert max(abs(a - b) for a, b in zip(own, scores)) < 1e-5
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    script, source = tmp_path / "train.py", checkpoint("llama")
    script.write_text(SCRIPT)
    # With `--cpu` accelerate starts one process whatever number is asked for, and `--multi_gpu`,
    # which starts them all on a CPU too, wants at least two.
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]
    launch += ["--main_process_port", "0"]
    for processes in (1, 2):
        starter = (
            [*launch, "--num_processes", str(processes)] if processes > 1 else [sys.executable]
        )
        command = [*starter, str(script), str(source)]
        done = subprocess.run(
            [*command, str(tmp_path / f"on-{processes}")],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"processes: {processes}" in done.stdout
    one, two = (load_file(tmp_path / f"on-{n}" / "model.safetensors") for n in (1, 2))
    start = load_file(source / "model.safetensors")
    moved = max((one[k] - start[k]).abs().max().item() for k in one if k in start)
    assert moved > 1e-2
    for name, tensor in one.items():
        assert (two[name] - tensor).abs().max().item() < 1e-3 * moved, name
