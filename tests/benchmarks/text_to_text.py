"""What T5 and BART make of tasks from text to text: pretrained here, and from random weights.

    python tests/benchmarks/text_to_text.py runs/text_to_text 0 1 2 3 4

Each recipe is run once a seed as it is, and once with a pretraining of one step that moves nothing;
the share of right answers to the same held-out prompts is printed beside the floors: to copy what
is asked, and to give each task's answer that is right most often, of a fact but for the name.
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
PARTS = {
    "t5_text_to_text": {"evaluate": "text_tasks", "closed_book": "closed_book"},
    "bart_rephrase": {"evaluate": "rephrasing", "closed_book": "closed_book"},
}
"""By recipe: which part of the world each of its evaluations asks for."""
RANDOM = ("--set", "base.tokens=512", "--set", "base.learning_rate=1e-9")


def task(row: Completion) -> tuple[str, str]:
    """Return which task a row asks for, and its answer, of a fact without the name."""
    asked = row.prompt.partition(": ")[0].split()[0]
    if asked != "fact":
        return asked, row.completion
    said = row.completion.partition(" ")[2]
    return said.split()[0], said


def floors(part: str) -> dict[str, float]:
    """Return the share of right answers of a copy, and of the answer right most often by task."""
    rows = World(0).records(f"{part}_heldout")
    held = [one for one in rows if isinstance(one, Completion)]
    counts: dict[str, Counter[str]] = {}
    for name, answer in map(task, held):
        counts.setdefault(name, Counter())[answer] += 1
    copied = sum(one.prompt.partition(": ")[2] == one.completion for one in held)
    likeliest = sum(found.most_common(1)[0][1] for found in counts.values())
    return {"copy": copied / len(held), "most frequent": likeliest / len(held)}


def right(run: Path, stage: str) -> float:
    """Return the share of right answers of a run's fine-tuned model."""
    found = json.loads((run / stage / "evaluation.json").read_text(encoding="utf-8"))
    return float(found["checkpoints"]["sft"]["proxy_reward"])


def of_others(run: Path) -> float:
    """Return how often answers from a closed book are true of another person, as guesses are."""
    rows = World(0).records("closed_book_heldout")
    true = {(one.completion.split()[0], *task(one)) for one in rows if isinstance(one, Completion)}
    names = {name for name, _, _ in true}
    asked = {one.id: one.completion.split()[:2] for one in rows if isinstance(one, Completion)}
    found = []
    with (run / "closed_book" / "samples.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            name, verb = asked[row["id"]]
            said = row["response"].partition(" ")[2]
            found += [(other, verb, said) in true for other in names - {name}]
    return sum(found) / len(found)


def main() -> None:
    """Run what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--recipes", nargs="+", choices=PARTS, default=[*PARTS])
    given = parser.parse_args()
    for recipe in given.recipes:
        runs = []
        for seed in given.seeds:
            whole, bare = (given.out / recipe / f"{kind}-{seed}" for kind in ("whole", "bare"))
            file, fixed = ROOT / "recipes" / f"{recipe}.yaml", ("--set", f"seed={seed}")
            rlhf_run(file, whole, *fixed)
            copy_stages(whole, bare, ["tokenizer"])
            rlhf_run(file, bare, *fixed, *RANDOM)
            runs.append((whole, bare))
        for stage, part in PARTS[recipe].items():
            print(part, *(f"{name} {share:.3f}" for name, share in floors(part).items()), sep=" | ")
            pairs = [(right(whole, stage), right(bare, stage)) for whole, bare in runs]
            for side, name in enumerate(("pretrained", "random weights")):
                values = [pair[side] for pair in pairs]
                print(f"  {name}: {in_words(values)}", *(f"{value:.3f}" for value in values))
            if stage == "closed_book":
                values = [of_others(whole) for whole, _ in runs]
                print(f"  pretrained, held against facts of others: {in_words(values)}")
            gained = in_words([a - b for a, b in pairs])
            print(f"  pretrained less random weights: {gained}", flush=True)


if __name__ == "__main__":
    main()
