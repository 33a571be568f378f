"""Ratings of many checkpoints from their comparisons two by two: Bradley-Terry, and Elo beside it.

The probability that one checkpoint is preferred to another is the sigmoid of the difference of
their ratings (Bradley and Terry, 1952). The first checkpoint is the anchor at 0, so that a rating
is the log-odds to be preferred to it. Elo is the same rating on the scale of chess, as Chatbot
Arena has it: 1000 for the anchor, and 400 points more are odds of ten to one. It depends on no
order of games and no K.

A normal prior around the mean of all ratings (`logistic.PRIOR_DEVIATION`, an L2 penalty) keeps the
rating of a checkpoint finite that won or lost everything.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit

from data.intervals import LEVEL, Estimate, drawn_clusters, effective_score, number_clusters
from pipeline.evaluation.judge.logistic import PRIOR_DEVIATION, Floats, fit_logistic

ANCHOR_ELO = 1000.0


class Comparison(NamedTuple):
    """Two checkpoints compared on a prompt; `outcome` is 1, half or 0 for the first."""

    first: str
    second: str
    outcome: float
    prompt: Hashable


class _Games(NamedTuple):
    """All comparisons, counted for each prompt (P) and each two checkpoints that met (G)."""

    features_GK: Floats
    won_PG: Floats
    n_PG: Floats
    decided_PG: Floats


def elo(bradley_terry: float) -> float:
    """Return a rating on the scale of chess: 400 points for odds of ten to one.

    >>> round(elo(math.log(10)))
    1400
    """
    return ANCHOR_ELO + 400 / math.log(10) * bradley_terry


def bradley_terry(
    names: Sequence[str],
    comparisons: Sequence[Comparison],
    *,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> dict[str, Estimate]:
    """Return each checkpoint's log-odds over the first one, with the interval of this difference.

    The variance of the probability behind it is that of refits on prompts drawn anew; the interval
    is `data.intervals.effective_score`'s, as log-odds, and ends with the prior's own at the latest.

    Args:
        names: the checkpoints, the anchor first.
        comparisons: any of them, in any order.
        resamples: how often the prompts are drawn anew.
        seed: of the draws.
        level: confidence.

    Returns:
        By name; `n` counts the prompts on which a checkpoint was compared. Without value where no
        chain of comparisons leads to the anchor; the anchor itself is 0, without interval.
    """
    games = _games(names, comparisons)
    if not comparisons:
        return {name: Estimate(0.0 if name == names[0] else None, None, None, 0) for name in names}
    reached_K = _reached(games.features_GK)
    drawn_RK = _refits(games, resamples=resamples, seed=seed)
    full_K, drawn_RK = drawn_RK[0], drawn_RK[1:]
    ratings: dict[str, Estimate] = {}
    for place, name in enumerate(names):
        rating = float(full_K[place] - full_K[0])
        n = int((games.n_PG[:, games.features_GK[:, place] != 0].sum(axis=1) > 0).sum())
        if place == 0 or not reached_K[place]:
            ratings[name] = Estimate(None if place else 0.0, None, None, n)
            continue
        shares_R = expit(drawn_RK[:, place] - drawn_RK[:, 0])
        ends = _ends(games, place, float(expit(rating)), float(shares_R.var()), n, level)
        ratings[name] = Estimate(rating, min(rating, ends[0]), max(rating, ends[1]), n)
    return ratings


def _games(names: Sequence[str], comparisons: Sequence[Comparison]) -> _Games:
    places = {name: place for place, name in enumerate(names)}
    prompts, prompt_N = number_clusters([c.prompt for c in comparisons])
    # The one that stands first in `names` is the first of its kind of game.
    turned = [places[c.first] > places[c.second] for c in comparisons]
    outcome_N = np.array(
        [1 - c.outcome if t else c.outcome for c, t in zip(comparisons, turned, strict=True)]
    )
    kinds, game_N = number_clusters(
        [
            (min(pair), max(pair))
            for c in comparisons
            for pair in [(places[c.first], places[c.second])]
        ]
    )
    features_GK = np.zeros((len(kinds), len(names)))
    for game, (first, second) in enumerate(kinds):
        features_GK[game, first], features_GK[game, second] = 1, -1
    counts = np.zeros((3, len(prompts), len(kinds)))
    for count_PG, value_N in zip(
        counts, (outcome_N, np.ones(len(outcome_N)), outcome_N != 0.5), strict=True
    ):
        np.add.at(count_PG, (prompt_N, game_N), value_N)
    return _Games(features_GK, *counts)


def _reached(features_GK: Floats) -> NDArray[np.bool_]:
    """Return which checkpoints a chain of comparisons ties to the first one."""
    _, part_K = connected_components(coo_array(features_GK.T @ features_GK), directed=False)
    return np.asarray(part_K == part_K[0])


def _refits(games: _Games, *, resamples: int, seed: int) -> Floats:
    """Return the ratings (1 + R, K) of all comparisons and of each resample of prompts."""
    features_GK, won_PG, n_PG, _ = games
    (full_K,) = fit_logistic(features_GK, won_PG.sum(0, keepdims=True), n_PG.sum(0, keepdims=True))
    draws = drawn_clusters(len(n_PG), resamples=resamples, seed=seed, width=max(features_GK.shape))
    refits = [fit_logistic(features_GK, d @ won_PG, d @ n_PG, start_F=full_K) for d in draws]
    return np.concatenate([full_K[None], *refits])


def _ends(
    games: _Games, place: int, share: float, variance: float, n: int, level: float
) -> tuple[float, float]:
    """Return the ends of a rating's interval, from the variance of its share of preference."""
    features_GK, _, n_PG, decided_PG = games
    own_G = features_GK[:, place] != 0
    certain = any(_all_alike(games, k) for k in (0, place))
    prompts = len(n_PG)
    ends = effective_score(
        2 * share - 1,
        decided=float(decided_PG[:, own_G].sum() / n_PG[:, own_G].sum()),
        variance=0.0 if certain else 4 * variance * prompts / max(1, prompts - 1),
        clusters=prompts,
        most=float(n_PG[:, own_G].sum()),
        least=n,
        level=level,
    )
    furthest = NormalDist().inv_cdf(0.5 + level / 2) * PRIOR_DEVIATION
    low, high = np.clip(logit((1 + np.array(ends)) / 2), -furthest, furthest)
    return float(low), float(high)


def _all_alike(games: _Games, place: int) -> bool:
    """Return whether a checkpoint won, lost or tied all its comparisons."""
    side_G = games.features_GK[:, place]
    own_G = side_G != 0
    n_G, won_G = games.n_PG.sum(axis=0), games.won_PG.sum(axis=0)
    won = float(np.where(side_G > 0, won_G, n_G - won_G)[own_G].sum())
    decided, n = float(games.decided_PG[:, own_G].sum()), float(n_G[own_G].sum())
    return decided == 0 or won in (0.0, n)
