"""Counts every figure of an evaluation from its samples, the way the stage itself does.

`samples.jsonl` has one row for each prompt and checkpoint:

    index, id, prompt, checkpoint, plain, response, n_tokens, ended, kl, gold, proxy, assessment

`probability`, how sure the checkpoint was (`truthfulness`); where there are such, `sources`, the
passages in front of the prompt, and `scores`, by name, of further judges that score;
so `figures([*read_json_lines(path)])` gives the report's numbers again, perplexity apart, which is
measured on texts and not on samples. Judges that give no scores but compare two answers leave
`judgements.jsonl` beside it, a row for each time they did, and `figures` takes its rows too:

    judge, index, a, b, outcome

`a` and `b` being two checkpoints, `a` the later one, and `outcome` 1 where its answer is better,
half for a tie, 0 where it is worse, None without a verdict; each judge adds columns of its own.
Several rows of one judge on the same two answers, as of several people, count as one, by their
mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple

from data.intervals import Estimate, mean_interval, mean_or_share, paired_difference, wilson
from data.records import prompt_hash
from pipeline.evaluation.judge.diversity import distinct, repetition
from pipeline.evaluation.judge.length_control import length_controlled
from pipeline.evaluation.judge.pathologies import pathologies
from pipeline.evaluation.judge.ratings import Comparison, bradley_terry, elo
from pipeline.evaluation.judge.winrates import outcomes, win_rate

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


class Verdict(NamedTuple):
    """What a judge said of two samples, `times` times; `outcome` is 1, half or 0 for the first."""

    outcome: float
    first: Row
    second: Row
    times: int = 1


Pair = tuple[str, str]
"""Two checkpoints, the later one first."""


def figures(
    rows: Iterable[Row],
    judgements: Iterable[Row] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any] | list[dict[str, Any]]]:
    """Return `checkpoints`, `win_rates`, `ratings`, `differences`, `pathologies` of all samples.

    Checkpoints come in the order of their first sample. Of each two, `a` is the later and `b` the
    earlier one, so that a rate above one half speaks for the training in between. Ratings are
    log-odds over the first checkpoint.

    Args:
        rows: the samples.
        judgements: what judges said who compare two answers.
        resamples: draws of each bootstrap.
        seed: of each bootstrap.
    """
    by_name = _by_checkpoint(rows)
    pairs = _pairs_of(list(by_name))
    judged = _verdicts(by_name, pairs, judgements)
    draw = {"resamples": resamples, "seed": seed}
    return {
        "checkpoints": {name: checkpoint_figures(mine) for name, mine in by_name.items()},
        "win_rates": [
            _win_rate(pair, judge, found[pair], draw)
            for pair in pairs
            for judge, found in judged.items()
            if pair in found
        ],
        "ratings": [
            rating
            for judge, found in judged.items()
            for rating in _ratings(list(by_name), judge, found, draw)
        ],
        "differences": [
            difference
            for a, b in pairs
            for measure in (*COLUMNS, *SHARES)
            for difference in _difference(a, by_name[a], b, by_name[b], measure, draw)
        ],
        "pathologies": pathologies(by_name),
    }


def compared(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Return the samples of each two checkpoints to the same prompts, the later one's first."""
    by_name = _by_checkpoint(rows)
    return [both for a, b in _pairs_of([*by_name]) for both in _matched(by_name[a], by_name[b])]


def _by_checkpoint(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the samples of each checkpoint, in the order of prompts."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["checkpoint"], []).append(row)
    return {name: sorted(mine, key=lambda row: int(row["index"])) for name, mine in by_name.items()}


def _pairs_of(names: Sequence[str]) -> list[Pair]:
    """Return each two checkpoints, neighbours in the order of training first."""
    places = {name: place for place, name in enumerate(names)}
    pairs = [(later, earlier) for earlier, later in combinations(names, 2)]
    return sorted(pairs, key=lambda pair: places[pair[0]] - places[pair[1]])


def checkpoint_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return one checkpoint's figures; a figure that no sample has is None."""
    texts = [row["response"] for row in rows]
    figures: dict[str, Any] = {"n": len(rows)}
    for key, column in MEANS.items():
        values = [float(row[column]) for row in rows if row[column] is not None]
        figures |= _named(key, mean_or_share(values))
    further = dict.fromkeys(judge for row in rows for judge in row.get("scores", {}))
    if further:
        figures["scores"] = {judge: _mean_score(rows, judge) for judge in further}
    lengths = [float(row["n_tokens"]) for row in rows]
    figures |= _named("mean_length", mean_interval(lengths))
    figures |= _named("ended_share", wilson(sum(bool(row["ended"]) for row in rows), len(rows)))
    figures |= _calls(rows)
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


def _calls(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how often responses call tools, and how often that fails; nothing without tools."""
    calls = [row["calls"] for row in rows if "calls" in row]
    if not calls:
        return {}
    failed = [bool(call["error"]) for mine in calls for call in mine]
    return {
        **_named("calls_per_response", mean_interval([float(len(mine)) for mine in calls])),
        **_named("failed_call_share", wilson(sum(failed), len(failed))),
    }


def _named(key: str, estimate: Estimate) -> dict[str, Any]:
    return {key: estimate.value, f"{key}_ci95": estimate.ci95}


def _mean_score(rows: Sequence[Row], judge: str) -> dict[str, Any]:
    scores = [score for row in rows if (score := score_by(judge, row)) is not None]
    estimate = mean_or_share(scores)
    return {"mean": estimate.value, "ci95": estimate.ci95, "n": estimate.n}


def _share(rows: Sequence[Row], share: str) -> dict[str, Any]:
    # None is a question the judge does not know; it counts neither way.
    marks = [bool(r["assessment"][share]) for r in rows if r["assessment"][share] is not None]
    estimate = wilson(sum(marks), len(marks))
    return {"share": estimate.value, "ci95": estimate.ci95, "count": sum(marks), "n": len(marks)}


def _matched(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the samples of two checkpoints to the same prompts."""
    others = {row["index"]: row for row in b}
    return [(row, others[row["index"]]) for row in a if row["index"] in others]


def _verdicts(
    by_name: Mapping[str, Sequence[Row]], pairs: Sequence[Pair], judgements: Iterable[Row]
) -> dict[str, dict[Pair, list[Verdict]]]:
    """Return what each judge said of each two checkpoints; those it never compared are out."""
    found: dict[str, dict[Pair, list[Verdict]]] = {}
    scored = [name for mine in by_name.values() for row in mine for name in row.get("scores", {})]
    for judge in dict.fromkeys([*JUDGES, *scored]):
        for a, b in pairs:
            both = _judged(by_name[a], by_name[b], judge)
            for outcome, (first, second) in zip(outcomes(*_scores(both, judge)), both, strict=True):
                verdict = Verdict(outcome, first, second)
                found.setdefault(judge, {}).setdefault((a, b), []).append(verdict)
    samples = {(name, row["index"]): row for name, mine in by_name.items() for row in mine}
    said: dict[tuple[str, str, str, int], list[float]] = {}
    for row in judgements:
        key = (row["judge"], row["a"], row["b"], row["index"])
        if row["outcome"] is not None:
            said.setdefault(key, []).append(row["outcome"])
    for (judge, a, b, index), given in said.items():
        verdict = Verdict(fmean(given), samples[a, index], samples[b, index], len(given))
        found.setdefault(judge, {}).setdefault((a, b), []).append(verdict)
    for by_pair in found.values():
        for verdicts in by_pair.values():  # whoever came first, the same draws
            verdicts.sort(key=lambda verdict: int(verdict.first["index"]))
    return found


def _win_rate(
    pair: Pair, judge: str, verdicts: Sequence[Verdict], draw: dict[str, int]
) -> dict[str, Any]:
    judged = [verdict.outcome for verdict in verdicts]
    prompts = [prompt_hash(verdict.first["prompt"]) for verdict in verdicts]
    lengths = [len(v.first["response"]) - len(v.second["response"]) for v in verdicts]
    trials = sum(verdict.times for verdict in verdicts)
    won = win_rate(judged, prompts=prompts, trials=trials, **draw)
    even = length_controlled(judged, lengths, prompts, trials=trials, **draw)
    return {
        "a": pair[0],
        "b": pair[1],
        "judge": judge,
        "wins": won.wins,
        "ties": won.ties,
        "losses": won.losses,
        "rate": won.rate.value,
        "ci95": won.rate.ci95,
        "n": won.rate.n,
        "rate_length_controlled": even.value,
        "ci95_length_controlled": even.ci95,
    }


def _judged(a: Sequence[Row], b: Sequence[Row], judge: str) -> list[tuple[Row, Row]]:
    """Return the samples of two checkpoints to the same prompts that a judge scored both of."""
    return [pair for pair in _matched(a, b) if all(score_by(judge, r) is not None for r in pair)]


def score_by(judge: str, row: Row) -> float | None:
    """Return what a judge that scores gave a sample; None where it did not judge it."""
    score = row[judge] if judge in JUDGES else row.get("scores", {}).get(judge)
    return None if score is None else float(score)


def _scores(both: Sequence[tuple[Row, Row]], judge: str) -> tuple[list[Any], list[Any]]:
    return [score_by(judge, row) for row, _ in both], [score_by(judge, row) for _, row in both]


def _ratings(
    names: Sequence[str],
    judge: str,
    found: Mapping[Pair, Sequence[Verdict]],
    draw: dict[str, int],
) -> list[dict[str, Any]]:
    """Return the checkpoints' ratings by a judge."""
    comparisons = [
        Comparison(a, b, verdict.outcome, prompt_hash(verdict.first["prompt"]))
        for (a, b), verdicts in found.items()
        for verdict in verdicts
    ]
    ratings = bradley_terry(names, comparisons, **draw)
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
