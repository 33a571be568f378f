"""Counts every figure of an evaluation from its samples, the way the stage itself does.

`samples.jsonl` has one row for each prompt and checkpoint:

    index, id, prompt, checkpoint, plain, response, n_tokens, ended, kl, gold, proxy, assessment

so `figures([*read_json_lines(path)])` gives the report's numbers again, perplexity apart, which is
measured on texts and not on samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from data.intervals import Estimate, bootstrap_mean, mean_or_share, paired_difference, wilson
from data.records import prompt_hash
from pipeline.evaluation.judge.diversity import distinct, repetition
from pipeline.evaluation.judge.length_control import length_controlled
from pipeline.evaluation.judge.pathologies import pathologies
from pipeline.evaluation.judge.ratings import Comparison, bradley_terry, elo
from pipeline.evaluation.judge.winrates import compare, outcomes

Row = Mapping[str, Any]
JUDGES = ("gold", "proxy")
MEANS = {"gold_reward": "gold", "proxy_reward": "proxy", "kl_to_reference": "kl"}
COLUMNS = {
    "gold_reward": "gold",
    "proxy_reward": "proxy",
    "mean_length": "n_tokens",
    "ended_share": "ended",
}
"""Figures of which paired differences are told, by the column they are means of."""
RESAMPLES = 2000
SHARES = ("correct", "condescending", "long_winded", "invented", "admits_ignorance")
"""What the embedded world's judge says of an answer besides its score."""


def figures(
    rows: Iterable[Row], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any] | list[dict[str, Any]]]:
    """Return `checkpoints`, `win_rates`, `ratings`, `differences`, `pathologies` of all samples.

    Checkpoints come in the order of their first sample. Of each two, `a` is the later and `b` the
    earlier one, so that a rate above one half speaks for the training in between. Ratings are
    log-odds over the first checkpoint.

    Args:
        rows: the samples.
        resamples: draws of each bootstrap.
        seed: of each bootstrap.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["checkpoint"], []).append(row)
    for name, mine in by_name.items():
        by_name[name] = sorted(mine, key=lambda row: int(row["index"]))
    pairs = [(later, earlier) for earlier, later in _neighbours_first(list(by_name))]
    draw = {"resamples": resamples, "seed": seed}
    return {
        "checkpoints": {name: checkpoint_figures(mine, **draw) for name, mine in by_name.items()},
        "win_rates": [
            rate
            for a, b in pairs
            for judge in JUDGES
            for rate in _win_rate(a, by_name[a], b, by_name[b], judge, draw)
        ],
        "ratings": [rating for judge in JUDGES for rating in _ratings(by_name, pairs, judge, draw)],
        "differences": [
            difference
            for a, b in pairs
            for measure in (*COLUMNS, *SHARES)
            for difference in _difference(a, by_name[a], b, by_name[b], measure, draw)
        ],
        "pathologies": pathologies(by_name, **draw),
    }


def _neighbours_first(names: Sequence[str]) -> list[tuple[str, str]]:
    places = {name: place for place, name in enumerate(names)}
    return sorted(combinations(names, 2), key=lambda pair: places[pair[1]] - places[pair[0]])


def checkpoint_figures(rows: Sequence[Row], *, resamples: int, seed: int) -> dict[str, Any]:
    """Return one checkpoint's figures; a figure that no sample has is None."""
    texts = [row["response"] for row in rows]
    figures: dict[str, Any] = {"n": len(rows)}
    for key, column in MEANS.items():
        values = [float(row[column]) for row in rows if row[column] is not None]
        figures |= _named(key, mean_or_share(values, resamples=resamples, seed=seed))
    lengths = [float(row["n_tokens"]) for row in rows]
    figures |= _named("mean_length", bootstrap_mean(lengths, resamples=resamples, seed=seed))
    figures |= _named("ended_share", wilson(sum(bool(row["ended"]) for row in rows), len(rows)))
    figures["repetition"] = sum(map(repetition, texts)) / len(texts) if texts else None
    figures |= {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
    assessed = [row for row in rows if row["assessment"] is not None]
    if assessed:
        figures["shares"] = {share: _share(assessed, share) for share in SHARES}
        kinds = list(dict.fromkeys(row["assessment"]["kind"] for row in assessed))
        figures["correct_by_kind"] = {
            kind: _share([r for r in assessed if r["assessment"]["kind"] == kind], "correct")
            for kind in sorted(kinds)
        }
    return figures


def _named(key: str, estimate: Estimate) -> dict[str, Any]:
    return {key: estimate.value, f"{key}_ci95": estimate.ci95}


def _share(rows: Sequence[Row], share: str) -> dict[str, Any]:
    # None is a question the judge does not know; it counts neither way.
    marks = [bool(r["assessment"][share]) for r in rows if r["assessment"][share] is not None]
    estimate = wilson(sum(marks), len(marks))
    return {"share": estimate.value, "ci95": estimate.ci95, "count": sum(marks), "n": len(marks)}


def _matched(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the samples of two checkpoints to the same prompts."""
    others = {row["index"]: row for row in b}
    return [(row, others[row["index"]]) for row in a if row["index"] in others]


def _win_rate(
    a: str, rows_a: Sequence[Row], b: str, rows_b: Sequence[Row], judge: str, draw: dict[str, int]
) -> list[dict[str, Any]]:
    both = _judged(rows_a, rows_b, judge)
    if not both:
        return []
    scores_a, scores_b = _scores(both, judge)
    prompts = [prompt_hash(row["prompt"]) for row, _ in both]
    lengths = [len(row_a["response"]) - len(row_b["response"]) for row_a, row_b in both]
    won = compare(scores_a, scores_b, prompts=prompts, **draw)
    even = length_controlled(outcomes(scores_a, scores_b), lengths, prompts, **draw)
    counts = {"wins": won.wins, "ties": won.ties, "losses": won.losses}
    rate = {
        "rate": won.rate.value,
        "ci95": won.rate.ci95,
        "n": won.rate.n,
        "rate_length_controlled": even.value,
        "ci95_length_controlled": even.ci95,
    }
    return [{"a": a, "b": b, "judge": judge, **counts, **rate}]


def _judged(a: Sequence[Row], b: Sequence[Row], judge: str) -> list[tuple[Row, Row]]:
    """Return the samples of two checkpoints to the same prompts that a judge scored both of."""
    return [pair for pair in _matched(a, b) if all(row[judge] is not None for row in pair)]


def _scores(both: Sequence[tuple[Row, Row]], judge: str) -> tuple[list[float], list[float]]:
    return [float(row[judge]) for row, _ in both], [float(row[judge]) for _, row in both]


def _ratings(
    by_name: Mapping[str, Sequence[Row]],
    pairs: Sequence[tuple[str, str]],
    judge: str,
    draw: dict[str, int],
) -> list[dict[str, Any]]:
    """Return the checkpoints' ratings by a judge; none where it compared no two of them."""
    comparisons = [
        Comparison(a, b, outcome, prompt_hash(row["prompt"]))
        for a, b in pairs
        for both in [_judged(by_name[a], by_name[b], judge)]
        for outcome, (row, _) in zip(outcomes(*_scores(both, judge)), both, strict=True)
    ]
    if not comparisons:
        return []
    ratings = bradley_terry(list(by_name), comparisons, **draw)
    return [
        {
            "checkpoint": name,
            "judge": judge,
            "bradley_terry": rating.value,
            "elo": None if rating.value is None else elo(rating.value),
            "ci95": rating.ci95,
        }
        for name, rating in ratings.items()
    ]


def _difference(
    a: str, rows_a: Sequence[Row], b: str, rows_b: Sequence[Row], measure: str, draw: dict[str, int]
) -> list[dict[str, Any]]:
    both = [
        (value_a, value_b)
        for row_a, row_b in _matched(rows_a, rows_b)
        for value_a, value_b in [(_value(row_a, measure), _value(row_b, measure))]
        if value_a is not None and value_b is not None
    ]
    if not both:
        return []
    difference = paired_difference([one for one, _ in both], [one for _, one in both], **draw)
    figure = {"difference": difference.value, "ci95": difference.ci95, "n": difference.n}
    return [{"a": a, "b": b, "measure": measure, **figure}]


def _value(row: Row, measure: str) -> float | None:
    """Return what a sample says of a measure; None where the judge can't tell."""
    column = COLUMNS.get(measure)
    value = row[column] if column is not None else (row["assessment"] or {}).get(measure)
    return None if value is None else float(value)
