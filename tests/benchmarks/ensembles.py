"""Whether ensembles of reward models help against over-optimisation, over several seeds.

    python tests/benchmarks/ensembles.py runs/quickstart runs/ensembles 0 1 2 3 4

takes the SFT model and the rankings of a finished quickstart, trains a few reward models a seed,
each on the same few rankings, and has PPO push a policy against the first of them and against
their ensembles (Coste et al. 2023), without a KL penalty, for equally many updates and episodes.
Gold is the embedded world's annotator, on prompts that PPO does not train on. What is done of a run
is not repeated. A row a seed and way, then means and the paired differences to the single model,
all with 95 % intervals over seeds (Student's t).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import yaml
from over_seeds import in_words, rlhf_run

from data.json_lines import read_json_lines
from reward.learned.model import RewardModel

MEMBERS = 3
WAYS = {"single": None, "mean": "mean", "worst case": "min", "uncertainty": "mean_minus_variance"}
"""Way -> how the members' scores become one; None takes the first member alone."""
FIGURES = (
    "gold", "proxy", "KL", "best gold", "its proxy", "its update", "gold at KL 10", "scoring",
)  # fmt: skip
"""At the end; where gold was best; between evaluations; and scoring's share of an update's time."""
PARTS = ("rollout", "score", "forward", "judge", "optimize")


def recipe(source: Path, seed: int) -> dict[str, Any]:
    """Return a recipe of reward models and of PPO against them, each in every way."""
    reward = {
        "kind": "reward",
        "model": str(source / "sft"),
        "train": [{"path": str(source / "rankings" / "rankings.jsonl"), "limit": 240}],
        "demonstrations": [{"world": "instructions_heldout", "limit": 200}],
        "ties": "half",
        "prompts_per_step": 8,
        "learning_rate": 5e-4,
    }
    ppo = {
        "kind": "ppo",
        "policy": str(source / "sft"),
        "prompts": [{"world": "ppo_prompts"}],
        "max_prompt_tokens": 64,
        "max_new_tokens": 48,
        "episodes": 384,
        "batch_size": 32,
        "minibatches": 4,
        "epochs": 1,
        "temperature": 1.0,
        "kl_coefficient": 0.0,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "value_warmup_updates": 1,
        "schedule": "constant",
        "evaluate_every": 4,
        "evaluation_prompts": [{"world": "eval_prompts", "limit": 120}],
        "evaluation_gold": True,
        "save_every": 0,
    }
    members = [f"reward_{place}" for place in range(MEMBERS)]
    stages: dict[str, Any] = {
        member: {**reward, "seed": MEMBERS * seed + place} for place, member in enumerate(members)
    }
    for way, how in WAYS.items():
        of = members[0] if how is None else [{"models": members, "combine": how}]
        stages[stage_of(way)] = {**ppo, "reward": of}
    return {"seed": seed, "stages": stages}


def stage_of(way: str) -> str:
    return "ppo_" + way.replace(" ", "_")


def figures(stage: Path) -> list[float]:
    """Return `FIGURES` of a ppo stage: at its end, and gold where it was best on the way."""
    told = json.loads((stage / "over_optimisation.json").read_text(encoding="utf-8"))
    updates = [row for row in read_json_lines(stage / "metrics.jsonl") if "time/score" in row]
    times = {part: sum(row[f"time/{part}"] for row in updates) for part in PARTS}
    best, last = max(told["points"], key=lambda point: point["gold"]), told["points"][-1]
    gold_at_10 = np.interp(
        10.0,
        np.maximum.accumulate([point["kl"] for point in told["points"]]),
        [point["gold"] for point in told["points"]],
    )
    return [
        *(last[name] for name in ("gold", "proxy", "kl")),
        *(best[name] for name in ("gold", "proxy", "step")),
        float(gold_at_10),
        times["score"] / sum(times.values()),
    ]


def rises(run: Path) -> tuple[float, float]:
    """Return how much PPO against the first member raises its scores, and those of the others.

    Scores are of the answers to the evaluations' prompts, at the start and at the end.
    """
    rows = [*read_json_lines(run / stage_of("single") / "evaluation.jsonl")]
    last, rise = rows[-1]["update"], []
    for place in range(MEMBERS):
        folder = run / f"reward_{place}" / "model"
        model = RewardModel.load(folder, device=torch.device("cpu"), batch_size=64)
        scores = model.score([row["prompt"] for row in rows], [row["response"] for row in rows])
        start, end = (
            [score for score, row in zip(scores, rows, strict=True) if row["update"] == update]
            for update in (0, last)
        )
        rise.append(fmean(end) - fmean(start))
    return rise[0], fmean(rise[1:])


def main() -> None:
    source, out, seeds = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3:]
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    print("| seed | way | " + " | ".join(FIGURES) + " |")
    for seed in seeds:
        run = out / seed
        run.mkdir(parents=True, exist_ok=True)
        asked = run / "asked.yaml"
        asked.write_text(yaml.safe_dump(recipe(source, int(seed)), sort_keys=False))
        rlhf_run(asked, run)
        for way in WAYS:
            found[way].append(row := figures(run / stage_of(way)))
            print(f"| {seed} | {way} | " + " | ".join(f"{v:.3f}" for v in row) + " |", flush=True)
    for way, rows in found.items():
        columns = [in_words(values) for values in zip(*rows, strict=True)]
        print(f"| all | {way} | " + " | ".join(columns) + " |")
    for way in list(WAYS)[1:]:
        columns = [
            in_words([a - b for a, b in zip(*pair, strict=True)])
            for pair in zip(
                zip(*found[way], strict=True), zip(*found["single"], strict=True), strict=True
            )
        ]
        print(f"| less single | {way} | " + " | ".join(columns) + " |")
    own, others = zip(*(rises(out / seed) for seed in seeds), strict=True)
    print(f"PPO raised the score of the single model by {in_words(own)},")
    print(f"of the members that it was not trained against by {in_words(others)}")


if __name__ == "__main__":
    main()
