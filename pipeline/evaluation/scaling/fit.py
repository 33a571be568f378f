"""A scaling law fitted on points, with what tells how far it can be believed.

Intervals are percentiles of refits on runs drawn anew; residuals stand by run; a fit on the runs of
less compute is judged by what it says of the others; and Kaplan's law stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from pipeline.evaluation.scaling.isoflop import isoflop_curves
from pipeline.evaluation.scaling.laws import (
    MOST_EXPONENT,
    Chinchilla,
    ChinchillaForm,
    Floats,
    Kaplan,
    KaplanForm,
    Law,
    centered,
    minima,
    resampled,
)
from pipeline.evaluation.scaling.points import Points, ends_of, geometric_mean

HELD_OUT = 0.2
"""Share of the runs, those of most compute, that a fit on the others is judged by."""
MISFIT = 0.03
"""Root mean square of log errors above which the runs follow no such law. Finished runs of one
family lie within 1 % of theirs."""
_AT_END = 1e-3
"""An exponent so near to an end, or a term of so small a share of the loss, is one that the runs
don't tell."""


@dataclass(frozen=True)
class Fitted:
    """Chinchilla's law, and those of runs drawn anew, which give every interval."""

    law: Chinchilla
    drawn: Sequence[Chinchilla]

    def interval(self, values_R: Any) -> list[float]:
        """Return the middle 95 % of figures, one of each law drawn."""
        low, high = np.quantile(np.asarray(values_R, np.float64), [0.025, 0.975])
        return [float(low), float(high)]


def fit_chinchilla(points: Points, *, resamples: int, seed: int) -> Fitted:
    """Return the law with the least sum of Huber losses, and the laws of runs drawn anew.

    Args:
        points: runs, enough of them (`Points.too_few`).
        resamples: how often the runs are drawn anew.
        seed: of the draws.
    """
    form = ChinchillaForm()
    runs, center = centered(points.runs)
    best = minima(form, runs)
    drawn = resampled(form, runs, best, resamples=resamples, seed=seed)
    return Fitted(form.law(best[0], center), [form.law(theta, center) for theta in drawn])


def fit_kaplan(points: Points) -> Kaplan:
    """Return Kaplan's law with the least sum of Huber losses, N without embeddings if known."""
    form = KaplanForm()
    runs, center = centered(points.kaplan_runs)
    return form.law(minima(form, runs)[0], center)


def fit_report(points: Points, *, resamples: int, seed: int) -> tuple[Fitted, dict[str, Any]]:
    """Return the fitted law, and all that is told of it, as JSON holds it."""
    fitted = fit_chinchilla(points, resamples=resamples, seed=seed)
    law, drawn = fitted.law, fitted.drawn
    names = [field.name for field in fields(law)]
    ci95 = {name: fitted.interval([getattr(one, name) for one in drawn]) for name in names}
    ci95["size_exponent"] = fitted.interval([one.size_exponent for one in drawn])
    kaplan = fit_kaplan(points)
    report = {
        **asdict(law),
        "ci95": ci95,
        "size_exponent": law.size_exponent,
        "untold": _untold(law, points),
        "doubts": doubts(law, points),
        "points": len(points),
        "ignored_columns": list(points.ignored),
        "flops": "column" if points.measured else "6ND",
        "range": {
            "parameters": ends_of(points.parameters_P),
            "tokens": ends_of(points.tokens_P),
            "flops": ends_of(points.flops_P),
            "loss": ends_of(points.losses_P),
        },
        "residuals": _residuals(points, law),
        "held_out": _held_out(points, resamples=resamples, seed=seed),
        "kaplan": {
            **asdict(kaplan),
            "size_exponent": kaplan.size_exponent,
            "parameters": "all" if points.non_embedding_P is None else "non_embedding",
            "rms_error": _rms(_log_errors(points, kaplan)),
            "why_they_differ": why_they_differ(points, law, kaplan),
        },
        "isoflop": isoflop_curves(points, law),
        "resamples": resamples,
        "seed": seed,
    }
    return fitted, report


def untold_exponents(law: Chinchilla, points: Points) -> list[str]:
    """Return for each exponent that the runs do not tell what they leave open."""
    terms = (
        ("alpha", law.alpha, law.A * points.parameters_P**-law.alpha, "parameters"),
        ("beta", law.beta, law.B * points.tokens_P**-law.beta, "tokens"),
    )
    losses_P = law.loss(points.parameters_P, points.tokens_P)
    return [
        f"{name}: how {what} count, if they do"
        for name, exponent, term_P, what in terms
        if not _AT_END < exponent < MOST_EXPONENT - _AT_END or (term_P / losses_P).max() < _AT_END
    ]


def _untold(law: Chinchilla, points: Points) -> list[str]:
    found = untold_exponents(law, points)
    if law.E < _AT_END * float(points.losses_P.min()):  # noqa: SIM300
        found.append("E: a floor, if there is one; it is below what larger runs would show")
    return found


def doubts(law: Chinchilla, points: Points) -> list[str]:
    """Return why no law of these runs is to be believed; nothing where it fits them."""
    error = _rms(_log_errors(points, law))
    if error <= MISFIT:
        return []
    return [
        f"the law misses these runs by {error:.1%}, so that nothing beyond them follows from it: "
        "some are too short to have left the first steep fall, or their learning rates don't suit"
    ]


def _counted(points: Points, law: Law) -> Floats:
    """Return the parameters as a law counts them."""
    apart = points.non_embedding_P
    return points.parameters_P if apart is None or isinstance(law, Chinchilla) else apart


def _log_errors(points: Points, law: Law) -> Floats:
    """Return log of the loss that was had over the predicted one (P,)."""
    predicted_P = law.loss(_counted(points, law), points.tokens_P)
    return np.asarray(np.log(points.losses_P / predicted_P), np.float64)


def _rms(errors_P: Floats) -> float:
    return float(np.sqrt((errors_P**2).mean()))


def _residuals(points: Points, law: Chinchilla) -> dict[str, Any]:
    errors_P = _log_errors(points, law)
    predicted_P = law.loss(points.parameters_P, points.tokens_P)
    columns = (points.parameters_P, points.tokens_P, points.losses_P, predicted_P, errors_P)
    names = ("parameters", "tokens", "loss", "predicted", "log_error")
    rows = [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]
    return {"rms": _rms(errors_P), "largest": float(np.abs(errors_P).max()), "rows": rows}


def _held_out(points: Points, *, resamples: int, seed: int) -> dict[str, Any] | None:
    """Return what laws of the runs of less compute say of the others; None with too few."""
    order = np.argsort(points.flops_P, kind="stable")
    for count in sorted({max(1, round(HELD_OUT * len(points))), 1}, reverse=True):
        kept_P = np.ones(len(points), dtype=bool)
        kept_P[order[-count:]] = False
        smaller, others = points.only(kept_P), points.only(~kept_P)
        if not smaller.too_few:
            return _predicted(smaller, others, resamples=resamples, seed=seed)
    return None


def _predicted(smaller: Points, others: Points, *, resamples: int, seed: int) -> dict[str, Any]:
    fitted, kaplan = fit_chinchilla(smaller, resamples=resamples, seed=seed), fit_kaplan(smaller)
    at = int(np.argmax(others.flops_P))  # the largest run
    place = others.parameters_P[at], others.tokens_P[at]
    loss, predicted = float(others.losses_P[at]), float(fitted.law.loss(*place))
    lowest = float(smaller.losses_P.min())  # the floor: no law at all
    by_kaplan = float(kaplan.loss(_counted(others, kaplan)[at], others.tokens_P[at]))
    return {
        "runs": len(others),
        "fitted_on": len(smaller),
        "more_compute": float(others.flops_P.max() / smaller.flops_P.max()),
        "largest": {
            "parameters": float(place[0]),
            "tokens": float(place[1]),
            "loss": loss,
            "predicted": predicted,
            "ci95": fitted.interval([one.loss(*place) for one in fitted.drawn]),
            "error": predicted / loss - 1,
            "kaplan_error": by_kaplan / loss - 1,
            "lowest_smaller_error": lowest / loss - 1,
        },
        "mean_error": float(np.abs(np.expm1(-_log_errors(others, fitted.law))).mean()),
        "kaplan_mean_error": float(np.abs(np.expm1(-_log_errors(others, kaplan))).mean()),
    }


def why_they_differ(points: Points, law: Chinchilla, kaplan: Kaplan) -> list[str]:
    """Return why the exponents of the two laws differ on these runs, in figures of them."""
    n, d = geometric_mean(points.parameters_P), geometric_mean(points.tokens_P)
    largest = int(np.argmax(points.flops_P))
    here = law.loss(points.parameters_P[largest], points.tokens_P[largest])
    share = law.A * n**-law.alpha / law.loss(n, d)
    found = [
        f"Chinchilla's floor E is {law.E / here:.0%} of the loss of the largest run; Kaplan's law "
        "has none, and goes on to 0 beyond the runs. At their middle A / N^alpha is "
        f"{share:.0%} of the loss, so that alpha {law.alpha:.3f} lowers log L by "
        f"{law.alpha * share:.3f} a unit of log N; Kaplan's alpha_N {kaplan.alpha_N:.3f} is an "
        "exponent of the whole loss."
    ]
    if points.non_embedding_P is None:
        found.append(
            "N counts what the file calls parameters, in both; Kaplan's counts those without "
            "embeddings: give them as the column non_embedding_parameters."
        )
    else:
        shares_P = 1 - points.non_embedding_P / points.parameters_P
        found.append(
            f"Kaplan's N leaves out embeddings, {shares_P.min():.0%} to {shares_P.max():.0%} of "
            "the parameters here: without them N grows faster from run to run, and so does the "
            "best N with the budget (Pearce and Song, 2024)."
        )
    found.append(
        f"The best size for a budget grows as C^{law.size_exponent:.2f} by Chinchilla's law and as "
        f"C^{kaplan.size_exponent:.2f} by Kaplan's (0.73 in Kaplan et al., whose FLOPs leave out "
        "the output head and whose warm-up is long for small models: Porian et al., 2024)."
    )
    return found
