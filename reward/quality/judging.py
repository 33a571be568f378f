"""What is written of a reward model's quality: one JSON object, and the metrics taken from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from data.labels.agreement.agreement import TaskRanks, pair_agreement
from data.labels.agreement.ceiling import accuracy_ceiling
from data.records import Ranking, prompt_hash
from reward.quality import bag_of_words
from reward.quality.calibration import Calibration
from reward.quality.pairs import ScoredRanking, scored_pairs
from reward.quality.quality import quality
from reward.quality.shares import clustered_interval, pair_accuracy


def judge(sets: Mapping[str, Sequence[ScoredRanking]], calibration: Calibration) -> dict[str, Any]:
    """Return the content of `quality.json`.

    Args:
        sets: held-out rankings by name; the first one's quality is the model's, the others stand
            beside it under their names.
        calibration: where the bias is from.
    """
    blocks = {name: judge_rankings(rows) for name, rows in sets.items()}
    primary = next(iter(blocks))
    return {
        "judged_by": primary,
        **blocks.pop(primary),
        **blocks,
        "bias": {
            "reward_bias": calibration.bias,
            "demonstrations": calibration.n,
            "deviation": calibration.deviation,
        },
    }


def judge_rankings(rows: Sequence[ScoredRanking]) -> dict[str, Any]:
    """Return all figures of some scored rankings."""
    rankings = [r.ranking for r in rows]
    return {
        **quality(scored_pairs(rankings, [r.scores for r in rows])),
        "bag_of_words": _bag_of_words(rows),
        "annotator_ties": _annotator_ties(rankings),
        "ceiling": _ceiling(rankings),
    }


def with_bag_of_words(
    rows: Sequence[ScoredRanking], training: Sequence[Ranking] | None = None
) -> list[ScoredRanking]:
    """Return rankings with the scores of a bag of words that never saw their prompts.

    Args:
        rows: scored rankings.
        training: what the model learnt, of other prompts; folds of the rows' own when not given.
    """
    if training is None:
        found = bag_of_words.scores_by_folds([r.ranking for r in rows])
    elif (model := bag_of_words.fit(training)) is not None:
        found = [model.scores(r.ranking.completions) for r in rows]
    else:
        found = None
    if found is None:
        return list(rows)
    return [replace(row, words=scores) for row, scores in zip(rows, found, strict=True)]


def _bag_of_words(rows: Sequence[ScoredRanking]) -> dict[str, Any]:
    told = [(r.ranking, r.words) for r in rows if r.words is not None]
    return pair_accuracy(scored_pairs([r for r, _ in told], [s for _, s in told])).to_json()


def _annotator_ties(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Return the share of all pairs of completions that annotators left tied."""
    tied, prompts = [], []
    for ranking in rankings:
        for a, b in combinations(ranking.ranks, 2):
            tied.append(float(a == b))
            prompts.append(prompt_hash(ranking.prompt))
    return clustered_interval(tied, prompts).to_json("share")


def _ceiling(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Return how far annotators agree with each other, and what that allows a model to reach.

    Two annotators are compared on a pair that both ranked and neither tied; where several rows of
    one prompt name no annotator, each is another's.

    Returns:
        `agreement` with `ci95` of `n_prompts`, `low` and `high`, between which the best possible
        accuracy lies (`data.labels.agreement.ceiling`), and `note`.
    """
    said: dict[tuple[str, str, str], dict[str, tuple[int, int]]] = defaultdict(dict)
    for place, ranking in enumerate(rankings):
        key, name = prompt_hash(ranking.prompt), ranking.annotator or f"row {place}"
        for (a, rank_a), (b, rank_b) in combinations(
            sorted(zip(ranking.completions, ranking.ranks, strict=True)), 2
        ):
            said[key, a, b][name] = (rank_a, rank_b)
    tasks = [
        TaskRanks(prompt=key, task=str(place), ranks=ranks)
        for place, ((key, _, _), ranks) in enumerate(said.items())
        if len(ranks) > 1
    ]
    agreement = pair_agreement(tasks=tasks, ties=False)
    best = accuracy_ceiling(agreement=agreement)
    ends = None if agreement.low is None else [agreement.low, agreement.high]
    return {
        "agreement": agreement.value,
        "ci95": ends,
        "n_prompts": agreement.n,
        "low": best.low,
        "high": best.high,
        "note": best.note or agreement.note,
    }


def summary(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the final metrics of a stage from the content of `quality.json`."""
    low, high = content["ci95"]
    calibration, beats = content["calibration"], content["beats_length"] or {}
    over_low, over_high = beats.get("ci95", (None, None))
    figures = {
        "eval/accuracy": content["accuracy"],
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/longer_wins": content["longer_wins"],
        "eval/shorter_wins": content["shorter_wins"],
        "eval/over_length_rule": beats.get("difference"),
        "eval/over_length_rule_low": over_low,
        "eval/over_length_rule_high": over_high,
        "eval/bag_of_words": content["bag_of_words"]["accuracy"],
        "eval/accuracy_length_matched": content["accuracy_length_matched"],
        "eval/n_pairs": content["n_pairs"],
        "eval/equal_scores": content["equal_scores"]["share"],
        "eval/ece": calibration["ece"],
        "eval/log_loss": calibration["log_loss"],
        "eval/temperature": (calibration["temperature"] or {}).get("value"),
        "reward_bias": content["bias"]["reward_bias"],
    }
    return {name: value for name, value in figures.items() if value is not None}
