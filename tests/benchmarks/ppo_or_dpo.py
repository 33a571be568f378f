"""PPO, DPO, KTO, GRPO, RLOO, best of 16 and the rankings' winners at equal cost, over seeds.

    python tests/benchmarks/ppo_or_dpo.py runs/ppo_or_dpo 0 1 2 3 4 --share runs/quickstart
        [--trial N] [--equal tokens]

runs `recipes/ppo_or_dpo.yaml` once a seed into `runs/ppo_or_dpo/<seed>/` (what is done there is not
repeated) and prints a line for each policy: means with 95 % intervals over the seeds (Student's t),
and how far PPO's gold reward is above each other's, paired by seed. `--share` takes all up to the
rankings from a finished quickstart, for every seed the same; with `{seed}` in its path, from each
seed's own, reward model and PPO as well.

Cost is what comes behind the rankings. Seconds are those of a processor, as manifests tell them,
the reward model's counted for all who use it; the recipe's budgets make them about equal. New
tokens are those that are sampled to learn from; `--equal tokens` gives all who sample as many
episodes. `--trial N` runs all with one of the two settings of theirs that were tried (`TRIALS`), on
seeds that are not shown.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import yaml
from over_seeds import in_words, report_of, rlhf_run, shared_stages

RECIPE = Path(__file__).parents[2] / "recipes" / "ppo_or_dpo.yaml"
SHARED = ("tokenizer", "base", "sft", "rankings", "rankings_heldout")
STAGES = {
    "ppo": ("reward", "ppo"),
    "dpo": ("dpo",),
    "kto": ("kto",),
    "grpo": ("reward", "grpo"),
    "rloo": ("reward", "rloo"),
    "best": ("reward", "best_of_16", "best"),
    "winners": ("winners",),
}
"""Policy -> the stages behind the rankings that it took."""
TRIALS = (
    (
        "ppo.kl_coefficient=0.2", "dpo.beta=0.1", "dpo.epochs=1", "kto.learning_rate=1e-4",
        "grpo.kl_coefficient=0.04", "rloo.kl_coefficient=0.2", "best.learning_rate=5e-4",
        "winners.learning_rate=5e-4",
    ),
    (
        "ppo.kl_coefficient=0.1", "dpo.beta=0.5", "dpo.epochs=0.5", "kto.learning_rate=2e-4",
        "grpo.kl_coefficient=0.2", "rloo.kl_coefficient=0.1", "best.learning_rate=1e-3",
        "winners.learning_rate=1e-3",
    ),
)  # fmt: skip
"""Settings that were tried, two for each policy; the recipe has the better ones."""
EQUAL = {
    "seconds": (),
    "tokens": ("grpo.episodes=3840", "rloo.episodes=3840", "best_of_16.limit=240"),
}
SHARES = ("correct", "invented")
COLUMNS = ("gold", "over sft", "KL", "tokens long", *SHARES, "new tokens", "seconds", "MB")


def new_tokens(run: Path, stage: str, settings: dict[str, Any], metrics: dict[str, Any]) -> float:
    """Return the tokens that a stage sampled."""
    if settings["kind"] == "rankings":
        return float(metrics["n_prompts"] * settings["completions"] * metrics["mean_tokens"])
    if "episodes" not in settings:
        return 0.0
    lines = (run / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lengths = [json.loads(line)["objective/response_length"] for line in lines]
    return float(sum(lengths) / len(lengths) * settings["episodes"])


def figures(run: Path) -> dict[str, list[float]]:
    """Return the columns of each policy of a run."""
    report = report_of(run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["stages"]
    rates = {
        w["a"]: w["rate"] for w in report["win_rates"] if (w["b"], w["judge"]) == ("sft", "gold")
    }
    found = {}
    for name, stages in {"sft": (), **STAGES}.items():
        judged, took = report["checkpoints"][name], {s: report["stages"][s] for s in stages}
        found[name] = [
            judged["gold_reward"],
            rates.get(name, 0.5),
            judged["kl_to_reference"],
            judged["mean_length"],
            *(judged["shares"][share]["share"] for share in SHARES),
            sum(new_tokens(run, s, recipe[s], one["metrics"]) for s, one in took.items()),
            sum(one["processor_seconds"] or math.nan for one in took.values()),
            max((one["peak_rss_mb"] for one in took.values()), default=0.0),
        ]
    return found


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--share", required=True)
    parser.add_argument("--trial", type=int, choices=range(len(TRIALS)))
    parser.add_argument("--equal", choices=EQUAL, default="seconds")
    given = parser.parse_args()
    changes = [*EQUAL[given.equal], *(() if given.trial is None else TRIALS[given.trial])]
    options = [part for change in changes for part in ("--set", change)]
    runs = [given.out / seed for seed in given.seeds]
    for seed, run in zip(given.seeds, runs, strict=True):
        stages = (*SHARED, "reward", "ppo") if "{seed}" in given.share else SHARED
        kept = shared_stages(Path(given.share.format(seed=seed)), run, stages)
        rlhf_run(RECIPE, run, "--seed", seed, *kept, *options)
    found = [figures(run) for run in runs]
    print("| policy | " + " | ".join(COLUMNS) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for name in found[0]:
        columns = zip(*(one[name] for one in found), strict=True)
        # Manifests of before tell no seconds of a processor.
        cells = [in_words([v for v in column if v == v] or [math.nan]) for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name in STAGES:
        if name != "ppo":
            print(f"ppo over {name}, gold: {in_words([f['ppo'][0] - f[name][0] for f in found])}")


if __name__ == "__main__":
    main()
