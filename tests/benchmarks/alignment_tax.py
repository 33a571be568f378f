"""What fine-tuning forgets of the town's prose, and what keeps it, over seeds.

    python tests/benchmarks/alignment_tax.py runs/tax 0 1 2 3 4 --share runs/quickstart

runs `recipes/quickstart.yaml` once a seed and remedy into `runs/tax/<seed>/<remedy>/` (what is
done there is not repeated): as it is, with a share of raw text among the demonstrations of SFT,
and with PPO-ptx. Prints of `sft` and `ppo` the perplexity of held-out prose, the town's facts
told without a question (by likelihood, of four) and with one, gold reward, right answers and
inventions, and the seconds of a processor that `sft` and `ppo` took; means with 95 % intervals
over the seeds (Student's t). `--share` is a finished quickstart, whose tokenizer and base model are
those of every seed; PPO-ptx begins with what the same seed's run as it is has before PPO.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from over_seeds import in_words, report_of, rlhf_run, shared_stages

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
BEFORE_SFT = ("tokenizer", "base")
SFT_TO_PPO = ("sft", "rankings", "rankings_heldout", "reward")
AS_IT_IS = "as it is"
TEXT = "{{train: [{{world: corpus}}], share: {}, row_tokens: 64}}"
MIX = ("ppo.pretraining=base", "ppo.pretraining_row_tokens=64")
REMEDIES: dict[str, tuple[str, ...]] = {
    AS_IT_IS: (),
    **{f"text {share}": (f"sft.pretraining={TEXT.format(share)}",) for share in (0.1, 0.3)},
    **{f"ptx {c}": (*MIX, f"ppo.ptx_coefficient={c}") for c in (0.1, 0.3, 1.0)},
}
"""Remedy -> settings."""
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


def shared(share: Path, out: Path, seed: str, remedy: str) -> list[str]:
    """Copy what a remedy does not change; return the options that keep seeds."""
    run = folder(out, seed, remedy)
    options = shared_stages(share, run, BEFORE_SFT)
    if remedy == AS_IT_IS and options[1].endswith(f"={seed}"):
        return options + shared_stages(share, run, (*SFT_TO_PPO, "ppo"))
    if remedy.startswith("ptx"):
        options += shared_stages(folder(out, seed, AS_IT_IS), run, SFT_TO_PPO)
    return options


def folder(out: Path, seed: str, remedy: str) -> Path:
    """Return the run of a seed and remedy."""
    return out / seed / remedy.replace(" ", "-")


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
        runs = [folder(given.out, seed, remedy) for seed in given.seeds]
        for seed, run in zip(given.seeds, runs, strict=True):
            options = shared(given.share, given.out, seed, remedy)
            changes = (*REMEDIES[remedy], FACTS)
            options += [part for change in changes for part in ("--set", change)]
            rlhf_run(RECIPE, run, "--seed", seed, *options)
        found = [figures(run) for run in runs]
        for name in found[0]:
            cells = map(in_words, zip(*(one[name] for one in found), strict=True))
            print(f"| {remedy} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
