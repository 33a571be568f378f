"""What to train for a budget of FLOPs: the size and tokens with the lowest loss by a fitted law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import SourceError
from data.intervals import Estimate, mean_interval
from pipeline.evaluation.scaling.fit import Fitted, doubts, untold_exponents
from pipeline.evaluation.scaling.laws import Floats
from pipeline.evaluation.scaling.points import FLOPS_PER_PRODUCT, Points


def compute_factor(points: Points) -> Estimate:
    """Return C0 of C = C0 N D, the geometric mean over runs; 6 without interval if not measured."""
    if not points.measured:
        return Estimate(FLOPS_PER_PRODUCT, None, None, 0)
    products_P = points.parameters_P * points.tokens_P
    return _geometric_mean(points.flops_P / products_P)


def speed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the FLOPs a second of runs, the geometric mean, with interval.

    Args:
        rows: runs with `flops` and `seconds`.
    """
    rates_P = np.array([row["flops"] / row["seconds"] for row in rows])
    found = _geometric_mean(rates_P)
    return {"flops_per_second": found.value, "flops_per_second_ci95": found.ci95}


def _geometric_mean(values_P: Floats) -> Estimate:
    logs_P = np.log(values_P)
    mean, low, high, n = mean_interval(logs_P.tolist())
    assert mean is not None and low is not None and high is not None
    return Estimate(math.exp(mean), math.exp(low), math.exp(high), n)


def best_for(fitted: Fitted, points: Points, flops: float, factor: Estimate) -> dict[str, Any]:
    """Return the best N and D for a budget, and their loss, with intervals.

    Args:
        fitted: the law, and those of runs drawn anew.
        points: what it was fitted on.
        flops: the budget.
        factor: C0 of C = C0 N D.

    Raises:
        SourceError: the points do not tell how both N and D count, so that no size is best.
    """
    untold = untold_exponents(fitted.law, points)
    if untold:
        raise SourceError(
            f"the runs don't tell {untold[0]}, so that no size is the best for a budget; add runs "
            "that differ more"
        )
    assert factor.value is not None
    law, product = fitted.law, flops / factor.value
    sizes_R = np.array([one.best_size(product) for one in fitted.drawn])
    losses_R = [one.loss(n, product / n) for one, n in zip(fitted.drawn, sizes_R, strict=True)]
    parameters = float(law.best_size(product))
    tokens = product / parameters
    return {
        "flops": flops,
        "C0": factor.value,
        "C0_ci95": factor.ci95,
        "parameters": parameters,
        "parameters_ci95": fitted.interval(sizes_R),
        "tokens": tokens,
        "tokens_ci95": fitted.interval(product / sizes_R),
        "loss": float(law.loss(parameters, tokens)),
        "loss_ci95": fitted.interval(losses_R),
        "doubts": doubts(law, points),
        "extrapolates": _beyond(points, flops, parameters, tokens),
    }


def _beyond(points: Points, flops: float, parameters: float, tokens: float) -> list[str]:
    """Return in which respects a plan lies outside the points, and how far."""
    found = []
    for name, value, values_P in (
        ("the budget", flops, points.flops_P),
        ("N", parameters, points.parameters_P),
        ("D", tokens, points.tokens_P),
    ):
        low, high = float(values_P.min()), float(values_P.max())
        if value > high:
            found.append(f"{name} is {value / high:.3g} x the largest of the runs ({high:.3g})")
        elif value < low:
            found.append(f"{name} is {value / low:.3g} x the smallest of the runs ({low:.3g})")
    return found
