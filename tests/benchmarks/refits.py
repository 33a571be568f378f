"""Seconds of the bootstraps with refits: 1,000 draws of 5,000 pairs.

OMP_NUM_THREADS=1 python tests/benchmarks/refits.py [--pairs 5000] [--draws 1000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from pipeline.evaluation.judge.length_control import length_controlled
from pipeline.evaluation.judge.ratings import Comparison, bradley_terry


def timed(label: str, work: Callable[[], object]) -> None:
    """Print how long it took, and of it a processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{label}: {wall:.2f} s, of a processor {cpu:.2f} s")


def main() -> None:
    """Time both, with one pair a prompt and with three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
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
