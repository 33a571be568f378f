"""What fine-tuning forgets of the town's prose, and what keeps it, over seeds.

    python tests/benchmarks/alignment_tax.py runs/tax 0 1 2 3 4 --share runs/quickstart

runs `recipes/quickstart.yaml` once a seed and remedy into `runs/tax/<seed>/<remedy>/` (what is
done there is not repeated): as it is, with a share of raw text among the demonstrations of SFT,
and with PPO-ptx. Prints of `sft` and `ppo` the perplexity of held-out prose, the town's facts
told without a question (by likelihood, of four) and with one, gold reward, right answers and
inventions, and the seconds of a processor that `sft` and `ppo` took; means with 95 % intervals
over the seeds (Student's t). `--share` takes what a remedy does not change from a finished
quickstart, for every seed the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from over_seeds import in_words, report_of, rlhf_run, shared_stages

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
BEFORE_SFT = ("tokenizer", "base")
BEFORE_PPO = (*BEFORE_SFT, "sft", "rankings", "rankings_heldout", "reward")
TEXT = "{{train: [{{world: corpus}}], share: {}, row_tokens: 64}}"
MIX = ("ppo.pretraining=base", "ppo.pretraining_row_tokens=64")
REMEDIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "as it is": ((*BEFORE_PPO, "ppo"), ()),
    **{f"text {s}": (BEFORE_SFT, (f"sft.pretraining={TEXT.format(s)}",)) for s in (0.1, 0.3)},
    **{f"ptx {c}": (BEFORE_PPO, (*MIX, f"ppo.ptx_coefficient={c}")) for c in (0.1, 0.3, 1.0)},
}
"""Remedy -> stages that it leaves as they are, and settings."""
FACTS = "evaluate.tasks=[{kind: world_facts, limit: 60}]"
COLUMNS = ("perplexity", "facts", "asked", "gold", "right", "invented", "seconds")


def figures(run: Path) -> dict[str, list[float]]:
    """Return the columns of each checkpoint of a run."""
    report = report_of(run)
    tasks = json.loads((run / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))["tasks"]
    facts = {(one["checkpoint"], one["metric"], one.get("reading")): one["value"] for one in tasks}
    found = {}
    for name in ("sft", "ppo"):
        judged = report["checkpoints"][name]
        found[name] = [
            judged["perplexity"],
            facts[name, "facts_correct", "likelihood"],
            facts[name, "facts_correct", None],
            judged["gold_reward"],
            *(judged["shares"][share]["share"] for share in ("correct", "invented")),
            report["stages"][name]["processor_seconds"] or float("nan"),
        ]
    return found


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--share", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=REMEDIES, default=[*REMEDIES])
    given = parser.parse_args()
    print("| remedy | checkpoint | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for remedy in given.only:
        kept, changes = REMEDIES[remedy]
        runs = [given.out / seed / remedy.replace(" ", "-") for seed in given.seeds]
        for seed, run in zip(given.seeds, runs, strict=True):
            options = shared_stages(given.share, run, kept)
            options += [part for change in (*changes, FACTS) for part in ("--set", change)]
            rlhf_run(RECIPE, run, "--seed", seed, *options)
        found = [figures(run) for run in runs]
        for name in found[0]:
            cells = map(in_words, zip(*(one[name] for one in found), strict=True))
            print(f"| {remedy} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
