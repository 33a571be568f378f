"""Whether one trunk learns as much as four models from equal episodes, over several seeds.

    python tests/benchmarks/one_trunk.py runs/seeds runs/one_trunk 0 1 2 3 4

takes the quickstart's runs of those seeds (see `quickstart_seeds.py`), copies what comes before the
reward model, and runs `recipes/quickstart_one_trunk.yaml` on it; a run that is there is not
repeated. A row a seed: gold reward after PPO of both, their memory and seconds; then means, and the
95 % interval of the four models' mean over seeds (Student's t), in which one trunk should lie.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from over_seeds import copy_stages, over_seeds, report_of, rlhf_run

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart_one_trunk.yaml"
BEFORE = ("tokenizer", "base", "sft", "rankings", "rankings_heldout")


def figures(run: Path) -> tuple[float, float, float]:
    """Return gold reward after PPO, PPO's peak memory in MB and its seconds."""
    found = report_of(run)
    stage = found["stages"]["ppo"]
    return found["checkpoints"]["ppo"]["gold_reward"], stage["peak_rss_mb"], stage["seconds"]


def main() -> None:
    source, out, seeds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    rows = []
    print("seed  gold: four  one    MB: four   one   s: four   one")
    for seed in seeds:
        run = out / seed
        if not (run / "report" / "report.json").is_file():
            copy_stages(source / seed, run, BEFORE)
            rlhf_run(RECIPE, run, "--seed", seed)
        four, one = figures(source / seed), figures(run)
        rows.append((four[0], one[0]))
        print(
            f"{seed:4}  {four[0]:10.4f}  {one[0]:.4f}  {four[1]:8.0f}  {one[1]:4.0f}  "
            f"{four[2]:6.0f}  {one[2]:4.0f}",
            flush=True,
        )
    if len(rows) < 2:
        return
    fours, ones = [four for four, _ in rows], [one for _, one in rows]
    mean, low, high = over_seeds(fours)
    inside = low <= statistics.mean(ones) <= high
    print(
        f"mean of four {mean:.4f} [{low:.4f}, {high:.4f}], "
        f"of one {statistics.mean(ones):.4f}: {'inside' if inside else 'outside'}"
    )


if __name__ == "__main__":
    main()
