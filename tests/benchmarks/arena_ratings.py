"""Bradley-Terry ratings of an arena's votes beside choix, and how long each took.

    python tests/benchmarks/arena_ratings.py votes.jsonl.gz

A line is a vote: `left` and `right` (names of models), `winner` (left, right or tie) and `prompt`,
as in the arena of https://github.com/dustalov/llmfao.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time

import choix
import numpy as np

from pipeline.evaluation.judge.logistic import PRIOR_DEVIATION
from pipeline.evaluation.judge.ratings import Comparison, bradley_terry, elo

OUTCOMES = {"left": 1.0, "tie": 0.5, "right": 0.0}


def main() -> None:
    """Print both and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("votes")
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    with gzip.open(options.votes, "rt", encoding="utf-8") as file:
        votes = [json.loads(line) for line in file]
    games = [Comparison(v["left"], v["right"], OUTCOMES[v["winner"]], v["prompt"]) for v in votes]
    names = sorted({name for game in games for name in game[:2]})
    start = time.perf_counter()
    ratings = bradley_terry(names, games, resamples=options.draws, seed=0)
    ours = time.perf_counter() - start
    places = {name: place for place, name in enumerate(names)}
    # choix knows no ties: each vote counts twice, a tie once for either side.
    won = [
        pair
        for first, second, outcome, _ in games
        for a, b in [(places[first], places[second])]
        for pair in [(a, b)] * round(2 * outcome) + [(b, a)] * round(2 - 2 * outcome)
    ]
    start = time.perf_counter()
    theirs = choix.opt_pairwise(len(names), won, alpha=1 / PRIOR_DEVIATION**2, tol=1e-9)
    took = time.perf_counter() - start
    theirs -= theirs[0]
    gap = max(abs(float(ratings[n].value or 0.0) - theirs[places[n]]) for n in names)
    for name in sorted(names, key=lambda n: -theirs[places[n]]):
        value, low, high, n = ratings[name]
        ends = "" if low is None or high is None else f"[{elo(low):.0f}, {elo(high):.0f}]"
        print(f"{name:32} {elo(value or 0.0):6.0f} {ends:14} of {n} prompts")
    prompts = len({game.prompt for game in games})
    print(f"{len(games)} votes on {prompts} prompts, {len(names)} models")
    print(f"ours with {options.draws} refits {ours:.1f} s, choix once {took:.1f} s")
    print(f"largest difference {np.max(gap):.1e}")


if __name__ == "__main__":
    main()
