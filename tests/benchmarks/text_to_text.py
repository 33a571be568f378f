"""What T5 and BART make of tasks from text to text: pretrained here, and from random weights.

    python tests/benchmarks/text_to_text.py runs/text_to_text 0 1 2 3 4

Each recipe is run once a seed as it is, and once with a pretraining of one step that moves nothing;
the share of right answers to the same held-out prompts is printed beside the floors: to copy what
is asked, and to give the most frequent answer of each task.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from over_seeds import copy_stages, in_words, rlhf_run

from data.records import Completion
from data.world import World

ROOT = Path(__file__).parents[2]
PARTS = {"t5_text_to_text": "text_tasks", "bart_rephrase": "rephrasing"}
RANDOM = ("--set", "base.tokens=512", "--set", "base.learning_rate=1e-9")


def task(prompt: str) -> str:
    """Return which task a prompt asks for."""
    return prompt.partition(": ")[0].split()[0]


def floors(part: str) -> dict[str, float]:
    """Return the share of right answers of a copy, and of each task's most frequent answer."""
    world = World(0)
    learned, held = (
        [one for one in world.records(name) if isinstance(one, Completion)]
        for name in (part, f"{part}_heldout")
    )
    counts: dict[str, Counter[str]] = {}
    for one in learned:
        counts.setdefault(task(one.prompt), Counter())[one.completion] += 1
    likeliest = {name: found.most_common(1)[0][0] for name, found in counts.items()}
    right = {
        "copy": [one.prompt.partition(": ")[2] == one.completion for one in held],
        "most frequent": [likeliest[task(one.prompt)] == one.completion for one in held],
    }
    return {name: sum(given) / len(given) for name, given in right.items()}


def right(run: Path) -> dict[str, float]:
    """Return the share of right answers of a run's checkpoints."""
    found = json.loads((run / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    return {name: one["proxy_reward"] for name, one in found["checkpoints"].items()}


def main() -> None:
    """Run what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--recipes", nargs="+", choices=PARTS, default=[*PARTS])
    given = parser.parse_args()
    for recipe, part in PARTS.items():
        if recipe not in given.recipes:
            continue
        shares: dict[str, list[float]] = {"pretrained": [], "random weights": [], "base": []}
        for seed in given.seeds:
            whole, bare = (given.out / recipe / f"{kind}-{seed}" for kind in ("whole", "bare"))
            file, fixed = ROOT / "recipes" / f"{recipe}.yaml", ("--set", f"seed={seed}")
            rlhf_run(file, whole, *fixed)
            copy_stages(whole, bare, ["tokenizer"])
            rlhf_run(file, bare, *fixed, *RANDOM)
            shares["pretrained"].append(right(whole)["sft"])
            shares["random weights"].append(right(bare)["sft"])
            shares["base"].append(right(whole)["base"])
        pairs = zip(shares["pretrained"], shares["random weights"], strict=True)
        print(recipe, *(f"{name} {share:.3f}" for name, share in floors(part).items()), sep=" | ")
        for name, values in shares.items():
            print(f"  {name}: {in_words(values)}", *(f"{value:.3f}" for value in values))
        print(
            f"  pretrained less random weights: {in_words([a - b for a, b in pairs])}", flush=True
        )


if __name__ == "__main__":
    main()
