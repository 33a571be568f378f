"""Whether a student learns more with its teacher than alone at equal steps, over several seeds.

    python tests/benchmarks/distillation_seeds.py runs/distillation 0 1 2 3 4

runs `recipes/bert_distill.yaml` with each seed of the student, and once more with the student
alone: the same teacher's layers to begin with and the same text, the true tokens for a loss; a run
that is there is not repeated, and the teacher of all is that of the first. A row a seed: held-out
loss and accuracy of teacher, student and the one alone; then means with 95 % intervals over the
seeds (Student's t), and those of the paired differences.
"""

from __future__ import annotations

import sys
from pathlib import Path

from over_seeds import copy_stages, in_words, report_of, rlhf_run

RECIPE = Path(__file__).parents[2] / "recipes" / "bert_distill.yaml"
ALONE = ("--set", "student.soft=0", "--set", "student.cosine=0", "--set", "student.hard=1")


def figures(run: Path) -> dict[str, float]:
    """Return loss and accuracy of a run's student."""
    metrics = report_of(run)["stages"]["student"]["metrics"]
    names = ("loss", "accuracy", "teacher_loss", "teacher_accuracy", "copy_accuracy")
    return {name: metrics[f"eval/{name}"] for name in names}


def main() -> None:
    out, seeds = Path(sys.argv[1]), sys.argv[2:]
    rows = []
    for seed in seeds:
        taught, alone = out / f"taught-{seed}", out / f"alone-{seed}"
        for run, options in ((taught, ()), (alone, ALONE)):
            if not (run / "report" / "report.json").is_file():
                if (first := out / f"taught-{seeds[0]}") != run:
                    copy_stages(first, run, ("tokenizer", "base"))
                rlhf_run(RECIPE, run, "--set", f"student.seed={seed}", *options)
        own, other = figures(taught), figures(alone)
        row = {**own, "alone_loss": other["loss"], "alone_accuracy": other["accuracy"]}
        rows.append(row)
        print(f"{seed}: " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    for name in rows[0]:
        print(f"{name}: {in_words([row[name] for row in rows])}")
    for name in ("loss", "accuracy"):
        more = [row[name] - row[f"alone_{name}"] for row in rows]
        print(f"{name}, with the teacher less alone: {in_words(more)}")


if __name__ == "__main__":
    main()
