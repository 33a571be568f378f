"""IsoFLOP curves: the best size for a budget by a parabola (Hoffmann et al. 2022, approach 2).

It needs no law, and is no law: a parabola through the losses of one budget finds the best size
without bias only where the curve is even on both sides and the sizes lie around its minimum. With
unlike exponents, or sizes all on one side, the parabola's minimum is off even without noise (Czech
et al. 2026), so that the law's own minimum stands beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.evaluation.scaling.laws import Chinchilla, Floats
from pipeline.evaluation.scaling.points import Points, geometric_mean

WIDTH = 1.05
"""Budgets of one curve differ by at most this factor."""
LEAST_SIZES = 3
"""Different sizes that a parabola needs."""


def isoflop_curves(points: Points, law: Chinchilla) -> dict[str, Any]:
    """Return the parabola of each budget with enough sizes, and N ~ C^a through their minima.

    Args:
        points: the runs.
        law: what was fitted on all of them.
    """
    curves = [_curve(points.only(members_P), law) for members_P in _budgets(points.flops_P)]
    inside = [c for c in curves if c["best_parameters"] is not None]
    exponent = None
    if len(inside) > 1:
        logs = np.log([[c["flops"], c["best_parameters"]] for c in inside])
        exponent = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    return {"curves": curves, "size_exponent": exponent}


def _budgets(flops_P: Floats) -> list[Any]:
    """Return which runs are of one budget, each budget's as marks (P,)."""
    groups: list[list[int]] = []
    for place in np.argsort(flops_P):
        if groups and flops_P[place] <= WIDTH * flops_P[groups[-1][0]]:
            groups[-1].append(int(place))
        else:
            groups.append([int(place)])
    marks = [np.isin(np.arange(len(flops_P)), group) for group in groups]
    return [marks_P for marks_P in marks if marks_P.sum() >= LEAST_SIZES]


def _curve(points: Points, law: Chinchilla) -> dict[str, Any]:
    x_P, y_P = np.log(points.parameters_P), points.losses_P
    product = geometric_mean(points.parameters_P * points.tokens_P)
    found: dict[str, Any] = {
        "flops": geometric_mean(points.flops_P),
        "points": [
            [float(n), float(loss)] for n, loss in zip(points.parameters_P, y_P, strict=True)
        ],
        "parabola": None,
        "best_parameters": None,
        "best_loss": None,
        "law_parameters": float(law.best_size(product)),
        "note": "",
    }
    if len(np.unique(x_P)) < LEAST_SIZES:
        return {**found, "note": f"fewer than {LEAST_SIZES} sizes"}
    middle = x_P.mean()
    c2, c1, c0 = map(float, np.polyfit(x_P - middle, y_P, 2))
    found["parabola"] = [c2, c1, c0, float(middle)]
    if c2 <= 0:
        return {**found, "note": "bent downwards: no minimum"}
    best = middle - c1 / (2 * c2)
    if not x_P.min() <= best <= x_P.max():
        side = "smaller" if best < x_P.min() else "larger"
        return {**found, "note": f"no minimum among its sizes; {side} ones are missing"}
    best_loss = c0 - c1**2 / (4 * c2)
    return {**found, "best_parameters": float(np.exp(best)), "best_loss": best_loss}
