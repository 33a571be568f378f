"""Heads on a pretrained encoder beside the same on random weights, over seeds; no test itself.

    python tests/benchmarks/finetuned_heads.py RUNS 0 1 2 3 4 [--pretrained RUN] [--set KEY=VALUE]

The encoder of `recipes/bert_reward.yaml` is pretrained once (or taken from a finished run); each
seed fine-tunes its three heads from it, and from an encoder of its shape that has learned nothing.

    python tests/benchmarks/finetuned_heads.py RUNS 0 --answers FILE --encoder FOLDER

Fine-tunes an encoder on rows of `question`, `answer` and `truthful` instead, and tells beside it
what a bag of words learns of the same rows: how often, of two answers to a question, the truthful
one gets the higher probability.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from over_seeds import copy_stages, in_words, over_seeds, report_of, rlhf_run

from data.intervals import wilson
from data.json_lines import read_json_lines
from data.records import Ranking, to_text
from data.sources.read import read
from data.sources.source import Source
from reward.quality.bag_of_words import fit

RECIPE = Path(__file__).parents[2] / "recipes" / "bert_reward.yaml"
HEADS = ("truth", "who", "names")
SHARED = ("encoder_tokenizer", "encoder")


def over_heads(options: argparse.Namespace) -> None:
    """Fine-tune over seeds and print a table."""
    first = options.pretrained or options.runs / "pretrained"
    stages = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["stages"]
    shared = {name: stages[name] for name in SHARED}
    if options.pretrained is None:
        _write(options.runs / "pretrained.yaml", 0, shared)
        rlhf_run(options.runs / "pretrained.yaml", first, *_set(options, SHARED))
    figures: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in options.seeds:
        heads = {name: {**stages[name], "seed": seed} for name in HEADS}
        # One step at no rate: the weights are those that the seed draws.
        untaught = {**stages["encoder"], "seed": seed, "tokens": None, "steps": 1,
                    "learning_rate": 1e-12, "evaluate_every": 0}  # fmt: skip
        bare = {f"{name}_bare": {**heads[name], "model": "bare"} for name in HEADS}
        recipe, run = options.runs / f"seed-{seed}.yaml", options.runs / f"seed-{seed}"
        _write(recipe, 0, {**shared, **heads, "bare": untaught, **bare})
        copy_stages(first, run, SHARED)
        rlhf_run(recipe, run, *_set(options, (*SHARED, *heads)))
        report = report_of(run)
        for head, suffix in product(HEADS, ("", "_bare")):
            for name, figure in report["heads"][head + suffix]["figures"].items():
                figures[head + suffix, name].append(figure["value"])
            seconds = report["stages"][head + suffix]["seconds"]
            figures[head + suffix, "seconds"].append(seconds)
            figures[head + suffix, "memory, MB"].append(
                report["stages"][head + suffix]["peak_rss_mb"]
            )
    print("| head | F1 | floor | random weights, F1 | pretrained less random | s | MB |")
    print("|---|---|---|---|---|---|---|")
    for head in HEADS:
        mine, theirs = figures[head, "f1"], figures[f"{head}_bare", "f1"]
        gain = [a - b for a, b in zip(mine, theirs, strict=True)]
        seconds, memory = (over_seeds(figures[head, k])[0] for k in ("seconds", "memory, MB"))
        print(
            f"| {head} | {in_words(mine)} | {over_seeds(figures[head, 'floor_f1'])[0]:.3f} | "
            f"{in_words(theirs)} | {in_words(gain)} | {seconds:.0f} | {memory:.0f} |"
        )


def on_answers(options: argparse.Namespace) -> None:
    """Fine-tune on judged answers and print accuracy beside a bag of words."""
    stage = {
        "kind": "finetune", "head": "classify", "model": str(options.encoder),
        "train": [{"path": str(options.answers), "columns": {"label": "truthful"}}],
        "heldout_share": 0.15, "max_length": 128, "epochs": 1, "learning_rate": 1e-4,
        "evaluate_every": 0,
    }  # fmt: skip
    recipe, run = options.runs / "answers.yaml", options.runs / "answers"
    _write(recipe, options.seeds[0], {"answers": stage})
    rlhf_run(recipe, run, *_set(options, ("answers",)))
    report = report_of(run)
    quality = report["heads"]["answers"]
    for name in ("accuracy", "floor_accuracy", "f1", "floor_f1"):
        figure = quality["figures"][name]
        print(f"{name}: {figure['value']:.3f} {[round(end, 3) for end in figure['ci95']]}")
    held = list(read_json_lines(run / "answers" / "heldout.jsonl"))
    apart = {f"{row['text']}\n{row['pair']}" for row in held}
    learned: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    source = Source(path=str(options.answers), format="labelled", columns={"label": "truthful"})
    rows: Any = read(source)
    for row in rows:
        if to_text(row) not in apart:
            learned[row.text].append((row.pair, row.label == "true"))
    words = fit([_ranking(q, told) for q, told in learned.items() if len(told) > 1])
    assert words is not None, "some question has a true and a false answer"
    right = {"model": 0.0, "bag of words": 0.0}
    pairs = 0
    asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in held:
        sure = row["said"]["probability"]
        row["true"] = sure if row["said"]["label"] == "true" else 1 - sure
        asked[row["text"]].append(row)
    for answers in asked.values():
        scores = words.scores([row["pair"] for row in answers])
        told = list(zip(answers, scores, strict=True))
        better = [each for each in told if each[0]["label"] == "true"]
        worse = [each for each in told if each[0]["label"] == "false"]
        for (good, good_score), (bad, bad_score) in product(better, worse):
            pairs += 1
            right["model"] += _half(good["true"], bad["true"])
            right["bag of words"] += _half(good_score, bad_score)
    for name, count in right.items():
        share = wilson(count, pairs)
        print(f"{name}: of {pairs} pairs of answers {share.value:.3f} the truthful one above")
    stage_told = report["stages"]["answers"]
    print(f"{stage_told['seconds']:.0f} s, {stage_told['peak_rss_mb']:.0f} MB")


def _ranking(question: str, told: list[tuple[str, bool]]) -> Ranking:
    ranks = [1 if good else 2 for _, good in told]
    ranks = ranks if 1 in ranks else [1] * len(ranks)
    return Ranking(question, [answer for answer, _ in told], ranks)


def _half(one: float, other: float) -> float:
    return float(one > other) + 0.5 * (one == other)


def _write(path: Path, seed: int, stages: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"seed": seed, "stages": stages}, sort_keys=False))


def _set(options: argparse.Namespace, stages: tuple[str, ...]) -> list[str]:
    """Return what of `--set` is for these stages."""
    return [part for one in options.set if one.split(".")[0] in stages for part in ("--set", one)]


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--pretrained", type=Path)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if options.answers is None:
        over_heads(options)
    else:
        on_answers(options)


if __name__ == "__main__":
    main()
