"""What BERT, T5 and BART learn of the embedded world, over several seeds.

    python tests/benchmarks/objectives_seeds.py runs/objectives 0 1 2 3 4

runs `recipes/bert_pretrain.yaml`, `t5_pretrain` and `bart_pretrain` with each seed; a run that is
there is not repeated. A row a seed: held-out accuracy on the tokens asked for, that of the most
frequent token and of copying alone, perplexity, seconds and memory; then means with 95 % intervals
over the seeds (Student's t), and the interval of how much better the model is than either floor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from over_seeds import in_words, report_of, rlhf_run

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("bert", "t5", "bart")
COLUMNS = {
    "accuracy": "eval/accuracy",
    "unigram": "eval/unigram_accuracy",
    "copy": "eval/copy_accuracy",
    "perplexity": "eval/perplexity",
}


def figures(run: Path) -> dict[str, float]:
    """Return what is told of a run."""
    stage: dict[str, Any] = report_of(run)["stages"]["base"]
    found = {name: stage["metrics"][key] for name, key in COLUMNS.items()}
    return {**found, "seconds": stage["seconds"], "MB": stage["peak_rss_mb"]}


def main() -> None:
    out, seeds = Path(sys.argv[1]), sys.argv[2:]
    for name in NAMES:
        rows = []
        for seed in seeds:
            run = out / f"{name}-{seed}"
            if not (run / "report" / "report.json").is_file():
                rlhf_run(RECIPES / f"{name}_pretrain.yaml", run, "--seed", seed)
            rows.append(figures(run))
            told = "  ".join(f"{key} {value:.3f}" for key, value in rows[-1].items())
            print(f"{name} {seed}: {told}", flush=True)
        for key in rows[0]:
            print(f"{name}, {key}: {in_words([row[key] for row in rows])}")
        for floor in ("unigram", "copy"):
            more = [row["accuracy"] - row[floor] for row in rows]
            print(f"{name}, accuracy above {floor}: {in_words(more)}", flush=True)


if __name__ == "__main__":
    main()
