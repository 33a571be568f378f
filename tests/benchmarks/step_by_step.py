"""What working step by step is worth on sums of two steps, and what PPO adds to it.

    python tests/benchmarks/step_by_step.py runs/step_by_step 0 1 2 3 4

runs `recipes/step_by_step.yaml` once a seed (what is done is not repeated, the tokenizer is made
once) and prints the share of right answers to the same held-out questions: of one answer and of the
majority of all samples, worked out and at once; the gains are paired by seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from over_seeds import copy_stages, in_words, rlhf_run

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ("sft", "ppo_steps", "ppo_direct")


def figures(run: Path) -> dict[tuple[str, str], float]:
    """Return the figures of a run's sums by checkpoint and metric."""
    found = json.loads((run / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    return {(one["checkpoint"], one["metric"]): one["value"] for one in found["tasks"]}


def main() -> None:
    """Run what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    given = parser.parse_args()
    runs = [given.out / f"seed-{seed}" for seed in given.seeds]
    for seed, run in zip(given.seeds, runs, strict=True):
        if run != runs[0]:
            copy_stages(runs[0], run, ["tokenizer"])
        fixed = ("--set", "tokenizer.seed=0", "--set", f"seed={seed}")
        rlhf_run(ROOT / "recipes" / "step_by_step.yaml", run, *fixed)
    found = [figures(run) for run in runs]
    metrics = sorted({m for one in found for _, m in one if m.endswith("accuracy") or "maj@" in m})
    for checkpoint in CHECKPOINTS:
        for metric in (*metrics, "majority_gain", "steps_gain"):
            print(f"{checkpoint} {metric}: {in_words([one[checkpoint, metric] for one in found])}")
    for trained, metric in (("ppo_steps", "accuracy"), ("ppo_direct", "direct_accuracy")):
        gains = [one[trained, metric] - one["sft", metric] for one in found]
        print(f"{trained} less sft, {metric}: {in_words(gains)}")


if __name__ == "__main__":
    main()
