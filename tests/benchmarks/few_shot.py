"""In-context learning of base models: more examples help, and larger models make more of them.

    python tests/benchmarks/few_shot.py runs/few_shot [--tokens 300000]

pretrains four sizes on lists of the embedded world and its corpus (what is done of the run is not
repeated), and asks each for the end of lists behind 0, 1, 2, 4 and 8 of their lines. It prints the
accuracy with its 95 % interval over questions and draws of the lines, of facts and sums together;
a guess is right in .04 of them. Then the share of questions that each model goes on from with
options A, B ..., as base models do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from over_seeds import rlhf_run

from pipeline.recipe.suite import load_suites

SIZES = {
    "31k": {"hidden_size": 36, "layers": 2, "heads": 2},
    "101k": {"hidden_size": 64, "layers": 2, "heads": 2},
    "336k": {"hidden_size": 96, "layers": 3, "heads": 4},
    "1M": {"hidden_size": 144, "layers": 4, "heads": 4},
}
"""By their parameters without embeddings."""


def recipe(tokens: int) -> dict[str, Any]:
    text = [{"world": "lists"}, {"world": "corpus", "limit": 2000}]
    stages: dict[str, Any] = {
        "tokenizer": {"kind": "tokenizer", "train": text, "vocab_size": 1024},
    }
    for name, size in SIZES.items():
        stages[name] = {
            "kind": "pretrain", "tokenizer": "tokenizer", "train": text, "tokens": tokens,
            "context_length": 64, "positions": 160, "batch_size": 8, "initializer_range": 0.06,
            "final_share": 0.0,
            "learning_rate": 4e-3 * (64 / size["hidden_size"]) ** 0.5, "warmup_share": 0.05,
            "heldout": [{"world": "lists_heldout"}], "evaluate_every": 0, **size,
        }  # fmt: skip
    stages["evaluate"] = {
        "kind": "evaluate", "checkpoints": {name: name for name in SIZES}, "plain": [*SIZES],
        "prompts": [{"world": "eval_prompts", "limit": 100}], "max_new_tokens": 48,
        "tasks": [task.model_dump(mode="json") for task in load_suites(["lists"])],
    }  # fmt: skip
    return {"name": "few-shot", "seed": 0, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=300_000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "few_shot.yaml"
    path.write_text(yaml.safe_dump(recipe(given.tokens)))
    rlhf_run(path, given.out)
    found = json.loads((given.out / "evaluate" / "evaluation.json").read_text())
    accuracy = {
        (one["checkpoint"], one["shots"]): one
        for one in found["tasks"]
        if one["metric"] == "accuracy"
    }
    shots = sorted({number for _, number in accuracy})
    print("accuracy".ljust(10), *(f"{number} examples".center(19) for number in shots))
    for name in SIZES:
        cells = []
        for number in shots:
            one = accuracy[name, number]
            low, high = one["ci95"]
            cells.append(f"{one['value']:.3f} [{low:.3f}, {high:.3f}]")
        print(name.ljust(10), *cells)
    for one in found["pathologies"]:
        if one["name"] == "options":
            low, high = one["ci95"]
            told = f"{one['value']:.1%} [{low:.1%}, {high:.1%}]"
            print(f"{one['checkpoint']}: goes on with options after {told} of questions")


if __name__ == "__main__":
    main()
