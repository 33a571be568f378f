"""What the embedded world's assistants know and invent, and what reduces it, over seeds.

    python tests/benchmarks/hallucination.py runs/truthful 0 1 2 3 4 [--share runs/quickstart]

runs `recipes/quickstart_truthful.yaml` once a seed into `runs/truthful/<seed>/` (what is done there
is not repeated) and prints a line for each checkpoint and temperature: the shares of answers to
held-out prompts that are right, invented, "I don't know" and wrong otherwise, and what of questions
with a false premise is right and invented; means with 95 % intervals over the seeds (Student's t).

`--share` takes the stages up to PPO from a finished quickstart, for every seed the same: the
intervals are then over what is compared with them alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from over_seeds import in_words, rlhf_run, shared_stages

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart_truthful.yaml"
SHARED = ("tokenizer", "base", "sft", "rankings", "rankings_heldout", "reward", "ppo")
OUTCOMES = ("right", "invented", "unknown", "wrong")
COLUMNS = (*OUTCOMES, "premises right", "premises invented")


def figures(run: Path, stage: str) -> dict[str, list[float]]:
    """Return the columns of each checkpoint of an evaluation."""
    results = json.loads((run / stage / "evaluation.json").read_text(encoding="utf-8"))
    return {row["checkpoint"]: columns(row["outcomes"]) for row in results["truthfulness"]}


def columns(outcomes: dict[str, Any]) -> list[float]:
    """Return the shares of each outcome, false premises apart."""
    whole, premises = outcomes["all"], outcomes["premise"]
    told = [
        (whole[name]["count"] - premises[name]["count"]) / (whole[name]["n"] - premises[name]["n"])
        for name in OUTCOMES
    ]
    return [*told, premises["right"]["share"], premises["invented"]["share"]]


def main() -> None:
    """Run what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--share", type=Path)
    given = parser.parse_args()
    for seed in given.seeds:
        options = shared_stages(given.share, given.out / seed, SHARED) if given.share else []
        rlhf_run(RECIPE, given.out / seed, "--seed", seed, *options)
    print("| checkpoint | temperature | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for stage, temperature in (("evaluate", 1.0), ("evaluate_cool", 0.5)):
        found = [figures(given.out / seed, stage) for seed in given.seeds]
        for name in found[0]:
            cells = map(in_words, zip(*(one[name] for one in found), strict=True))
            print(f"| {name} | {temperature} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
