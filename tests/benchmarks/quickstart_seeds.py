"""What the quickstart promises, counted over several seeds.

    python tests/benchmarks/quickstart_seeds.py runs/seeds 0 1 2 3 4 [--share runs/quickstart]

runs `recipes/quickstart.yaml` once a seed into `runs/seeds/<seed>/` (`rlhf run --seeds`, whose page
of all figures is `runs/seeds/index.html`) and prints every figure that is promised, a column a
seed, and its mean with the 95 % interval over seeds (Student's t); a figure out of its bounds is
marked with `!`. All of them come from `report/report.json`, whose verdicts stand below.

`--share` takes tokenizer, base model, SFT and rankings of a run of the first seed, for every seed
the same (`--from reward --reuse RUN`): the intervals are then over reward model and PPO alone, for
less than half the work, and the seconds those of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from over_seeds import in_words, report_of, rlhf_run

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
Report = dict[str, Any]


def win(report: Report, a: str, b: str) -> Report:
    return next(w for w in report["win_rates"] if (w["a"], w["b"], w["judge"]) == (a, b, "gold"))


def share(report: Report, checkpoint: str, name: str) -> float:
    return float(report["checkpoints"][checkpoint]["shares"][name]["share"])


def correct_low(report: Report) -> float:
    found = next(
        d
        for d in report["differences"]
        if (d["a"], d["b"], d["measure"]) == ("ppo", "sft", "correct")
    )
    return float(found["ci95"][0])


def distinct(report: Report) -> float:
    checkpoints = report["checkpoints"]
    return float(checkpoints["ppo"]["distinct_2"] / checkpoints["sft"]["distinct_2"])


def over_length(report: Report) -> float:
    model = report["reward_model"]
    return float(model["accuracy"] - max(model["longer_wins"], model["shorter_wins"]))


PROMISES: list[tuple[str, Callable[[Report], float], Callable[[float], bool]]] = [
    ("sft>base", lambda r: win(r, "sft", "base")["rate"], lambda x: x >= 0.65),
    ("low", lambda r: win(r, "sft", "base")["ci95"][0], lambda x: x > 0.60),
    ("ppo>sft", lambda r: win(r, "ppo", "sft")["rate"], lambda x: x >= 0.65),
    ("low", lambda r: win(r, "ppo", "sft")["ci95"][0], lambda x: x > 0.60),
    (
        "of equal length",
        lambda r: win(r, "ppo", "sft")["rate_length_controlled"],
        lambda x: x > 0.6,
    ),
    ("low", lambda r: win(r, "ppo", "sft")["ci95_length_controlled"][0], lambda x: x > 0.55),
    ("n", lambda r: win(r, "ppo", "sft")["n"], lambda x: x >= 500),
    ("rm", lambda r: r["reward_model"]["accuracy"], lambda x: x >= 0.75),
    ("longer", lambda r: r["reward_model"]["longer_wins"], lambda x: True),
    ("words", lambda r: r["reward_model"]["bag_of_words"]["accuracy"], lambda x: True),
    ("over length", over_length, lambda x: x >= 0.10),
    ("rm matched", lambda r: r["reward_model"]["accuracy_length_matched"], lambda x: x >= 0.65),
    ("cond. sft", lambda r: share(r, "sft", "condescending"), lambda x: x >= 0.30),
    ("cond. ppo", lambda r: share(r, "ppo", "condescending"), lambda x: x < 0.05),
    ("right sft", lambda r: share(r, "sft", "correct"), lambda x: x >= 0.70),
    ("right ppo", lambda r: share(r, "ppo", "correct"), lambda x: True),
    ("diff. low", correct_low, lambda x: x > -0.05),
    ("KL ppo", lambda r: r["checkpoints"]["ppo"]["kl_to_reference"], lambda x: x < 10),
    ("distinct-2", distinct, lambda x: x >= 0.8),
    ("seconds", lambda r: sum(s["seconds"] for s in r["stages"].values()), lambda x: x <= 600),
    ("peak MB", lambda r: max(s["peak_rss_mb"] for s in r["stages"].values()), lambda x: x < 4000),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--share", type=Path)
    given = parser.parse_args()
    shared = [] if given.share is None else ["--from", "reward", "--reuse", str(given.share)]
    rlhf_run(RECIPE, given.out, "--seeds", ",".join(given.seeds), *shared)
    reports = [report_of(given.out / seed) for seed in given.seeds]
    print("| figure | " + " | ".join(given.seeds) + " | all |")
    print("|---|" + "---|" * (len(reports) + 1))
    for name, figure, holds in PROMISES:
        values = [figure(report) for report in reports]
        cells = [f"{value:.3f}{'' if holds(value) else '!'}" for value in values]
        print(f"| {name} | " + " | ".join([*cells, in_words(values)]) + " |")
    for seed, report in zip(given.seeds, reports, strict=True):
        print(f"{seed}: " + " ".join(report["verdict"]))


if __name__ == "__main__":
    main()
