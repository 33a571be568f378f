"""Seconds of the bootstraps with refits: 1,000 draws of 5,000 pairs; and of win rates.

OMP_NUM_THREADS=1 python tests/benchmarks/refits.py [--pairs 5000] [--draws 1000]
OMP_NUM_THREADS=1 python tests/benchmarks/refits.py --run runs/quickstart [--prompts 500]

The second is a whole `rlhf eval` of a quickstart's three checkpoints, judged by the gold annotator
and the reward model: a process of its own, its imports, answers, scores and page. It tells the load
average of the last minute too, since the clock counts whatever else the machine did.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.evaluation.judge.length_control import length_controlled
from pipeline.evaluation.judge.ratings import Comparison, bradley_terry


def timed(label: str, work: Callable[[], object]) -> None:
    """Print how long it took, and of it a processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{label}: {wall:.2f} s, of a processor {cpu:.2f} s")


def win_rates(run: Path, prompts: int) -> None:
    """Time the evaluation of base, SFT and PPO of a quickstart's run."""
    rlhf = str(Path(sys.executable).with_name("rlhf"))
    asked = ["--prompts", "world:eval_prompts", "--limit", str(prompts), "--plain", "base"]
    judged = ["--reward", str(run / "reward"), "--reference", "sft", "--max-new-tokens", "48"]
    checkpoints = [f"{name}={run / name}" for name in ("base", "sft", "ppo")]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        command = [rlhf, "eval", *checkpoints, *asked, *judged, "--out", out, "--quiet"]
        subprocess.run(command, check=True)
    wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"win rates of {prompts} prompts x {len(checkpoints)} checkpoints: {wall:.1f} s, of a "
        f"processor {used.ru_utime + used.ru_stime:.1f} s (load average {os.getloadavg()[0]:.1f})"
    )


def main() -> None:
    """Time both, with one pair a prompt and with three; or an evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--run", type=Path, help="of a quickstart: time its win rates instead")
    parser.add_argument("--prompts", type=int, default=500)
    options = parser.parse_args()
    if options.run is not None:
        win_rates(options.run, options.prompts)
        return
    n, draw = options.pairs, {"resamples": options.draws, "seed": 0}
    rng = np.random.default_rng(0)
    outcomes = rng.choice([0.0, 0.5, 1.0], size=n).tolist()
    lengths = rng.normal(30, 100, size=n).round().tolist()
    names = [str(place) for place in range(6)]
    met = [rng.permutation(names)[:2].tolist() for _ in range(n)]
    for each in (1, 3):
        prompts = [place // each for place in range(n)]
        compared = [
            Comparison(a, b, y, p) for (a, b), y, p in zip(met, outcomes, prompts, strict=True)
        ]
        controlled = partial(length_controlled, outcomes, lengths, prompts, **draw)
        timed(f"length-controlled, {each} a prompt", controlled)
        rated = partial(bradley_terry, names, compared, **draw)
        timed(f"Bradley-Terry of 6, {each} a prompt", rated)


if __name__ == "__main__":
    main()
