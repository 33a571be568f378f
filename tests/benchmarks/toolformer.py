"""What a calculator that a model learned to call by itself is worth, and where it calls it.

    python tests/benchmarks/toolformer.py runs/toolformer 0 1 2 3 4 --share runs/quickstart

runs `recipes/toolformer.yaml` once a seed (what is done is not repeated; tokenizer, base and SFT
are made once, or taken from a finished quickstart) and prints, with and without the calculator, the
shares of right answers to the same held-out sums of two steps and to the quickstart's questions,
what the stages after SFT changed in the latter, and how many calls an answer to them holds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

from over_seeds import in_words, rlhf_run, shared_stages

RECIPE = Path(__file__).parents[2] / "recipes" / "toolformer.yaml"
SHARED = ("tokenizer", "base", "sft")
STAGES = ("with_calculator", "without_calculator")


def figures(run: Path) -> dict[str, float]:
    """Return a run's figures by what they are of."""
    found = {}
    for stage in STAGES:
        told = json.loads((run / stage / "evaluation.json").read_text(encoding="utf-8"))
        for one in told["tasks"]:
            if one["metric"] in ("accuracy", "marked", "slips"):
                found[f"{one['checkpoint']}, {stage}: sums, {one['metric']}"] = one["value"]
        right = {name: of["correct_by_kind"] for name, of in told["checkpoints"].items()}
        for name, kinds in right.items():
            found |= {f"{name}, {stage}: {kind}, right": of["share"] for kind, of in kinds.items()}
        for kind, of in right.get("sft", {}).items():
            found[f"tools less sft, {stage}: {kind}"] = right["tools"][kind]["share"] - of["share"]
    calls = defaultdict(list)
    for line in (run / STAGES[0] / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["checkpoint"] == "tools":
            calls[row["assessment"]["kind"]].append(len(row["calls"]))
    return found | {f"tools: {kind}, calls an answer": mean(of) for kind, of in calls.items()}


def main() -> None:
    """Run what is asked for, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--share", type=Path, help="finished quickstart")
    given = parser.parse_args()
    runs = [given.out / seed for seed in given.seeds]
    for seed, run in zip(given.seeds, runs, strict=True):
        source = given.share or runs[0]
        options = [] if source == run else shared_stages(source, run, SHARED)
        rlhf_run(RECIPE, run, "--seed", seed, *options)
    found = [figures(run) for run in runs]
    for name in found[0]:
        print(f"{name}: {in_words([one[name] for one in found])}")


if __name__ == "__main__":
    main()
