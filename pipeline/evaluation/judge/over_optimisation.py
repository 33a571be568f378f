"""Whether a policy was pushed past what its reward can judge: gold and proxy over sqrt(KL).

A proxy is what was optimised, gold a judge that was not. Two ways lead away from a start: training
(PPO's evaluations along its updates) and choosing the best of n answers by the proxy. Along either,
Gao, Schulman and Hilton 2022 ("Scaling laws for reward model overoptimization") find gold to follow

    best of n   R(d) = R(0) + d (alpha - beta d)
    training    R(d) = R(0) + d (alpha - beta log d),    d = sqrt(KL(policy || start))

Pure functions of numbers. Shapes: P prompts, N answers to each, K points along the way, R
resamples. Every interval is a bootstrap over prompts, of whole curves, seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from data.intervals import LEVEL, drawn_clusters
from pipeline.evaluation.judge.figures import score_by

Array = NDArray[np.float64]
Source = Literal["ppo", "best_of_n"]
FILE = "over_optimisation.json"
"""What a ppo stage leaves of it."""
RESAMPLES = 2000
LARGEST_N = 256
"""Most answers to choose among."""
MOVED = 0.05
"""KL in nats a response; nearer than that to where a policy began nothing can be told."""


def _square(d: Array) -> Array:
    return d * d


def _log(d: Array) -> Array:
    return d * np.log(np.where(d > 0, d, 1.0))


FORMS: Mapping[str, Callable[[Array], Array]] = {
    "d(alpha - beta d)": _square,
    "d(alpha - beta log d)": _log,
}
"""Form -> what beta multiplies, with a minus."""


class Curves(NamedTuple):
    """Judged answers along the way from a start.

    Attributes:
        at: the update, or n, of each point, ascending; the first one is the start.
        kl_PK: KL to the start in nats, an estimate a prompt.
        gold_PK: what the judge gives that nothing was chosen or trained by.
        proxy_PK: what was chosen or trained by gives.
    """

    at: Sequence[int]
    kl_PK: Array
    gold_PK: Array
    proxy_PK: Array


def kl_of_best(n: int) -> float:
    """Return the KL of the best of n answers to one answer: ln n - (n - 1) / n, in nats.

    An upper bound, exact where no two answers score the same (Stiennon et al. 2020, appendix G.3;
    Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(*, proxy_PN: Array, gold_PN: Array) -> Curves:
    """Return what the best answer of n by the proxy scores, for n = 1, 2, 3, 4, 6, 8, 12 ... N.

    The unbiased estimate from one pool of N answers a prompt (Nakano et al. 2021, appendix I; Gao
    et al. 2022, section 2.3): the mean over all subsets of n, in which the k-th of the pool sorted
    by proxy is the best of C(k - 1, n - 1) of C(N, n). Of answers of one proxy score any may be
    taken: each counts as their mean.

    Args:
        proxy_PN: scores that choose.
        gold_PN: scores of the same answers that do not.
    """
    size = proxy_PN.shape[1]
    steps = {n for power in range(9) for n in (2**power, 3 * 2**power // 2)}
    ns = sorted(n for n in {*steps, size} if 0 < n <= min(size, LARGEST_N))
    weights_KN = np.stack([_best_weights(n, size) for n in ns])
    order_PN = np.argsort(proxy_PN, axis=1, kind="stable")
    sorted_PN = np.take_along_axis(proxy_PN, order_PN, axis=1)
    level_PN = _mean_of_equals(sorted_PN, np.take_along_axis(gold_PN, order_PN, axis=1))
    kl_PK = np.tile([kl_of_best(n) for n in ns], (len(proxy_PN), 1))
    return Curves(ns, kl_PK, level_PN @ weights_KN.T, sorted_PN @ weights_KN.T)


def _best_weights(n: int, size: int) -> Array:
    """Return C(k - 1, n - 1) / C(N, n), the share of subsets whose best is the k-th, for all k."""
    k = np.arange(n, size + 1, dtype=np.float64)
    logs = gammaln(k) - gammaln(n) - gammaln(k - n + 1)
    logs -= gammaln(size + 1) - gammaln(n + 1) - gammaln(size - n + 1)
    return np.concatenate([np.zeros(n - 1), np.exp(logs)])


def _mean_of_equals(sorted_PN: Array, values_PN: Array) -> Array:
    """Return values, each the mean of those of its row with the same sorted score."""
    means = np.empty_like(values_PN)
    for row, (scores, values) in enumerate(zip(sorted_PN, values_PN, strict=True)):
        group = np.cumsum(np.diff(scores, prepend=scores[0]) != 0)
        means[row] = (np.bincount(group, weights=values) / np.bincount(group))[group]
    return means


def over_optimisation(
    curves: Curves,
    *,
    source: Source,
    judge: str = "gold",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return points, fits and the turn of gold, as JSON, and what they tell as a sentence.

    The turn is the best point by gold, where the last one is worse than it beyond noise: by more
    than 95 % of the resamples make of a curve that is flat. All points are looked at together
    there, so that the best of many is not one by chance alone.

    Args:
        curves: of the same prompts at every point.
        source: what led away from the start.
        judge: who gives gold, for the sentence.
        resamples: draws of prompts.
        seed: of the draws.
    """
    kl, gold, proxy = (curve.mean(axis=0) for curve in curves[1:])
    drawn = _drawn_means(curves, resamples=resamples, seed=seed)
    label = "step" if source == "ppo" else "n"
    points = [
        {
            label: int(at),
            "kl": float(kl[place]),
            "gold": float(gold[place]),
            "gold_ci95": _ends(drawn.gold_RK[:, place]),
            "proxy": float(proxy[place]),
            "proxy_ci95": _ends(drawn.proxy_RK[:, place]),
        }
        for place, at in enumerate(curves.at)
    ]
    fits = [
        {"judge": who, "form": form, **fit}
        for who, mean_K, mean_RK in (
            ("gold", gold, drawn.gold_RK),
            ("proxy", proxy, drawn.proxy_RK),
        )
        for form in FORMS
        if (fit := _fit(form, kl, mean_K, drawn.kl_RK, mean_RK)) is not None
    ]
    place = _turn(gold, drawn.gold_RK)
    if place is None:
        sentence = _no_turn_sentence(float(max(kl)), prompts=len(curves.gold_PK))
    else:
        rise = _ends(drawn.proxy_RK[:, -1] - drawn.proxy_RK[:, place])
        sentence = _turn_sentence(points[place], points[-1], rise, label, judge)
    return {
        "source": source,
        "x": "sqrt_kl",
        "prompts": len(curves.gold_PK),
        "points": points,
        "fits": fits,
        "turn": None if place is None else {label: points[place][label], "kl": float(kl[place])},
        "sentence": sentence,
    }


def _no_turn_sentence(furthest: float, *, prompts: int) -> str:
    if furthest < MOVED:
        told = f"KL is {furthest:.2g} at most: of over-optimisation nothing can be told yet"
    else:
        told = f"no sign of over-optimisation up to KL {_short(furthest, 1)}"
    return f"{told} ({prompts} prompts)"


class _Drawn(NamedTuple):
    kl_RK: Array
    gold_RK: Array
    proxy_RK: Array


def _drawn_means(curves: Curves, *, resamples: int, seed: int) -> _Drawn:
    """Return the mean curves of prompts drawn anew, the same prompts for all three."""
    count, points = curves.gold_PK.shape
    stacked = np.concatenate(curves[1:], axis=1)
    means = [
        often @ stacked / count
        for often in drawn_clusters(count, resamples=resamples, seed=seed, width=3 * points)
    ]
    return _Drawn(*np.split(np.concatenate(means), 3, axis=1))


def _ends(values: Array) -> list[float]:
    low, high = np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return [float(low), float(high)]


def _turn(gold_K: Array, gold_RK: Array) -> int | None:
    """Return the place of the best point where the last is worse than it beyond noise."""
    best = int(np.argmax(gold_K))
    noise_RK = gold_RK - gold_K
    fall_R = (noise_RK - noise_RK[:, -1:]).max(axis=1)
    beyond = gold_K[best] - gold_K[-1] > np.quantile(fall_R, LEVEL) + 1e-12
    return best if beyond else None


def _fit(
    form: str, kl_K: Array, mean_K: Array, kl_RK: Array, mean_RK: Array
) -> dict[str, Any] | None:
    """Fit a form by least squares, from the start on; None where the points do not tell both."""
    alpha, beta = _least_squares(form, kl_K[None], mean_K[None])[0]
    if not math.isfinite(alpha + beta):
        return None
    drawn_R2 = _least_squares(form, kl_RK, mean_RK)
    drawn_R2 = drawn_R2[np.isfinite(drawn_R2).all(axis=1)]
    if 2 * len(drawn_R2) < len(kl_RK):
        return None
    return {
        "alpha": float(alpha),
        "alpha_ci95": _ends(drawn_R2[:, 0]),
        "beta": float(beta),
        "beta_ci95": _ends(drawn_R2[:, 1]),
    }


def _least_squares(form: str, kl_RK: Array, mean_RK: Array) -> Array:
    """Return alpha and beta (R, 2) of each curve; NaN where its points do not tell them."""
    if kl_RK.shape[1] < 3:
        return np.full((len(kl_RK), 2), np.nan)
    d_RK = np.sqrt(np.maximum(kl_RK, 0.0))  # an estimate of no KL may fall below 0
    features_RK2 = np.stack([d_RK, -FORMS[form](d_RK)], axis=2)
    features_RK2 = features_RK2[:, 1:] - features_RK2[:, :1]
    rise_RK = mean_RK[:, 1:] - mean_RK[:, :1]
    normal_R22 = np.einsum("rki,rkj->rij", features_RK2, features_RK2)
    right_R2 = np.einsum("rki,rk->ri", features_RK2, rise_RK)
    told_R = np.linalg.det(normal_R22) > 1e-9 * normal_R22.trace(axis1=1, axis2=2) ** 2
    found_R2 = np.full((len(kl_RK), 2), np.nan)
    found_R2[told_R] = np.linalg.solve(normal_R22[told_R], right_R2[told_R][..., None])[..., 0]
    return found_R2


def _turn_sentence(
    best: Mapping[str, Any],
    last: Mapping[str, Any],
    rise: Sequence[float],
    label: str,
    judge: str,
) -> str:
    fall = f"{judge} fell from {_short(best['gold'])} to {_short(last['gold'])}"
    take = f"take {'update' if label == 'step' else 'n ='} {best[label]}"
    if rise[0] > 0:
        return f"proxy went on rising from KL {_short(best['kl'], 1)} on while {fall}: {take}"
    if rise[1] < 0:
        return f"{fall}, and proxy with it, so that it is no over-optimisation alone: {take}"
    return f"proxy rose no more from KL {_short(best['kl'], 1)} on, and {fall}: {take}"


def _short(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # without the sign of a zero


def along_training(
    rows: Sequence[Mapping[str, Any]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any] | None:
    """Return the over-optimisation of a run of PPO from the rows of its evaluation.jsonl.

    None where there was no second judge, or one evaluation alone.
    """
    if any(row["gold"] is None for row in rows):
        return None
    at = sorted({int(row["update"]) for row in rows})
    if len(at) < 2:
        return None
    by_place = {(row["index"], row["update"]): row for row in rows}
    prompts = sorted({int(row["index"]) for row in rows})

    def column(name: str) -> Array:
        return np.array([[by_place[p, u][name] for u in at] for p in prompts], dtype=np.float64)

    curves = Curves(at, column("kl"), column("gold"), column("proxy"))
    return over_optimisation(curves, source="ppo", resamples=resamples, seed=seed)


def from_pool(
    rows: Sequence[Mapping[str, Any]],
    *,
    judge: str = "gold",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the over-optimisation of the best of n from the rows of best_of_n.jsonl.

    Args:
        rows: answers of the pool.
        judge: who tells what they are worth: `gold`, or one of the rows' `scores`.
        resamples: draws of prompts.
        seed: of the draws.
    """
    prompts = len({row["index"] for row in rows})
    ordered = sorted(rows, key=lambda row: (int(row["index"]), int(row["sample"])))
    proxy, gold = (
        np.array([score_by(name, row) for row in ordered], dtype=np.float64).reshape(prompts, -1)
        for name in ("proxy", judge)
    )
    curves = best_of_n(proxy_PN=proxy, gold_PN=gold)
    found = over_optimisation(
        curves, source="best_of_n", judge=judge, resamples=resamples, seed=seed
    )
    return {"judge": judge, **found}
