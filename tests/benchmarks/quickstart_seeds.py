"""What the quickstart promises, counted over several seeds.

    python tests/benchmarks/quickstart_seeds.py runs/seeds 0 1 2 3 4

runs `recipes/quickstart.yaml` once a seed into `runs/seeds/<seed>/` (a run that is there is not
repeated) and prints a row a seed with every figure that is promised; a figure out of its bounds
is marked with `!`. All of them come from `report/report.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    ("n", lambda r: win(r, "ppo", "sft")["n"], lambda x: x >= 500),
    ("rm", lambda r: r["reward_model"]["accuracy"], lambda x: x >= 0.75),
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
    out, seeds = Path(sys.argv[1]), sys.argv[2:]
    rlhf = Path(sys.executable).with_name("rlhf")
    print("seed  " + "  ".join(name for name, _, _ in PROMISES))
    for seed in seeds:
        run = out / seed
        if not (run / "report" / "report.json").is_file():
            command = [str(rlhf), "run", str(RECIPE), "--seed", seed, "--out", str(run), "--quiet"]
            subprocess.run(command, check=True)
        report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
        cells = []
        for name, figure, holds in PROMISES:
            value = figure(report)
            cells.append(f"{value:.3g}{'' if holds(value) else '!'}".rjust(len(name)))
        print(f"{seed:4}  " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
