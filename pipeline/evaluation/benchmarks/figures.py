"""Counts every figure of tasks from their rows, the way the evaluation itself does.

`tasks.jsonl` has a row for each checkpoint, task, question and draw of examples; what is in it
beside `checkpoint`, `task`, `kind`, `index`, `draw`, `shots` and `first_tokens` is told by the
benchmark of its kind, whose `measures` makes numbers of it. `figures([*read_json_lines(path)])`
gives `tasks` of `evaluation.json` again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtri

from data.intervals import LEVEL, Estimate, clustered_ratio, mean_or_share
from pipeline.evaluation.benchmarks.measures import CHANCE, FORMS, Measure, Numbers, Row
from pipeline.evaluation.benchmarks.registry import BENCHMARKS

Key = tuple[str, str, str, str | None]
"""Checkpoint, task, metric and reading."""


def figures(rows: Iterable[Row], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return `tasks` of all rows: a figure for each checkpoint, task, metric and reading.

    Args:
        rows: of `tasks.jsonl`.
        resamples: draws of each bootstrap.
        seed: of each bootstrap.
    """
    first: dict[tuple[str, str], Row] = {}
    values: dict[Key, dict[int, dict[int, Measure]]] = {}
    for row in rows:
        asked = (row["checkpoint"], row["task"])
        first.setdefault(asked, row)
        for one in BENCHMARKS[row["kind"]].measures(row):
            by_draw = values.setdefault((*asked, one.metric, one.reading), {})
            by_draw.setdefault(row["draw"], {})[row["index"]] = one
    return [
        _figure(key, by_draw, first[key[:2]], resamples=resamples, seed=seed)
        for key, by_draw in values.items()
    ]


def _figure(
    key: Key, by_draw: dict[int, dict[int, Measure]], row: Row, *, resamples: int, seed: int
) -> dict[str, Any]:
    checkpoint, task, metric, reading = key
    measures_DQ = [[one for _, one in sorted(asked.items())] for asked in by_draw.values()]
    parts_DQ2 = np.array([[(one.value, one.size) for one in asked] for asked in measures_DQ])
    form, draw = measures_DQ[0][0].form, {"resamples": resamples, "seed": seed}
    if form == "mean" and np.all(parts_DQ2[..., 1] == 1):
        estimate = mean_over_draws(parts_DQ2[..., 0], **draw)
    else:
        estimate = _formed(clustered_ratio(parts_DQ2.sum(axis=0)), form)
    figure = {
        "checkpoint": checkpoint,
        "task": task,
        "kind": row["kind"],
        "metric": metric,
        **({} if reading is None else {"reading": reading}),
        "value": estimate.value,
        "ci95": None if metric == CHANCE else estimate.ci95,
        "n": estimate.n,
        "shots": row["shots"],
        "first_tokens": row["first_tokens"],
    }
    if len(parts_DQ2) > 1:
        figure["draws"] = _gathered(parts_DQ2.sum(axis=1), form).tolist()
    return figure


def _formed(rate: Estimate, form: str) -> Estimate:
    """Return what follows from a rate, with its ends in their order."""
    numbers = FORMS[form](np.array([math.nan if x is None else x for x in rate[:3]])).tolist()
    value, low, high = (None if math.isnan(x) else x for x in numbers)
    turned = low is not None and high is not None and low > high
    return Estimate(value, *((high, low) if turned else (low, high)), rate.n)


def _gathered(sums_R2: Numbers, form: str) -> Numbers:
    """Return the figures (R,) of summed values and sizes."""
    return FORMS[form](sums_R2[:, 0] / sums_R2[:, 1])


def mean_over_draws(
    values_DQ: NDArray[np.float64], *, resamples: int, seed: int, level: float = LEVEL
) -> Estimate:
    """Return a mean over questions, each asked behind D draws of examples, and its interval.

    One draw: Wilson's interval of a share, else the bootstrap over questions. Of several both
    questions and draws are samples, and all rows of a draw hang together: the two-way analysis of
    variance of crossed random effects gives the variance of the mean, (MS_Q + MS_D - MS_R) / (D Q).
    How well it is known is part of the interval, which is Weerahandi's generalised one (1993, JASA
    88:899): each mean square is what it may be in truth, square * freedom / chi2(freedom). Two
    draws tell little of how much examples matter, and their interval is wide.

    Args:
        values_DQ: a number for each draw and question.
        resamples: draws of the bootstrap, or of the mean squares.
        seed: of these.
        level: confidence.
    """
    draws, count = values_DQ.shape
    if draws == 1:
        return mean_or_share(values_DQ[0].tolist(), level=level)
    value = float(values_DQ.mean())
    if count < 2:
        return Estimate(value, None, None, count)
    by_question, by_draw = values_DQ.mean(axis=0), values_DQ.mean(axis=1)
    rest_DQ = values_DQ - by_question - by_draw[:, None] + value
    even_R4 = _even(resamples, seed)
    questions_R, draws_R, rest_R = (
        squares / chdtri(freedom, even_R4[:, place])
        for place, (squares, freedom) in enumerate(
            (
                (draws * float(((by_question - value) ** 2).sum()), count - 1),
                (count * float(((by_draw - value) ** 2).sum()), draws - 1),
                (float((rest_DQ**2).sum()), (draws - 1) * (count - 1)),
            )
        )
    )
    variance_R = np.maximum(questions_R + draws_R - rest_R, 0) / (draws * count)
    if not variance_R.any():  # every answer right, or every one wrong
        return mean_or_share(by_question.tolist(), level=level)
    half = float(np.quantile(np.abs(ndtri(even_R4[:, 3])) * np.sqrt(variance_R), level))
    # Of shares and probabilities no end lies beyond 0 and 1; of few draws it could.
    least, most = (0.0, 1.0) if values_DQ.min() >= 0 and values_DQ.max() <= 1 else (-np.inf, np.inf)
    return Estimate(value, max(least, value - half), min(most, value + half), count)


@lru_cache(maxsize=1)
def _even(resamples: int, seed: int) -> NDArray[np.float64]:
    """Return points of a Halton sequence, shape (resamples, 4), which lie evenly.

    Of two draws chi2 with one degree of freedom, whose inverse has heavy tails, random ones would
    give another interval each time.
    """
    from scipy.stats import qmc  # long to import, and for several draws alone

    points: NDArray[np.float64] = qmc.Halton(4, seed=seed).random(resamples)
    return points
