"""The page of a grid: its law, the runs under it, and each point; one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.report.plots import Curve, law_plot
from pipeline.evaluation.report.report import page_environment
from pipeline.evaluation.scaling.laws import Chinchilla
from pipeline.evaluation.scaling.text import FORMS, LAW, ends, fit_lines, told_lines

TEMPLATES = Path(__file__).parent / "templates"
MOST_CURVES = 8
"""As many as the page has colours."""
_COLUMNS = (
    "parameters", "without embeddings", "tokens", "learning rate", "FLOPs", "seconds", "loss",
    "95 %", "by the law",
)  # fmt: skip


def scaling_page(title: str, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a grid.

    Args:
        title: what it is called.
        report: the fit, as JSON holds it.
        rows: the grid's points, in the order in which they were fitted.
    """
    first, *_ = fit_lines(report)
    page = (
        page_environment(TEMPLATES)
        .get_template("scaling.html.j2")
        .render(
            title=title,
            law=LAW,
            runs=first.removeprefix(f"{LAW}, "),
            lines=[*told_lines(report)],
            coefficients=[
                {
                    "name": name,
                    "value": f"{report[name]:{form}}",
                    "ci95": ends(report["ci95"][name], form),
                }
                for name, form in FORMS.items()
            ],
            charts=_charts(report, rows),
            columns=_COLUMNS,
            points=[
                _cells(row, fitted["predicted"])
                for row, fitted in zip(rows, report["residuals"]["rows"], strict=True)
            ],
        )
    )
    return page + "\n"


def _cells(row: Mapping[str, Any], predicted: float) -> list[str]:
    return [
        row["run"],
        *(f"{row[key]:,}" for key in ("parameters", "non_embedding_parameters", "tokens")),
        f"{row['learning_rate']:.3g}",
        f"{row['flops']:.3e}",
        f"{row['seconds']:,.0f}",
        f"{row['loss']:.4f}",
        ends(row["loss_ci95"], ".4f"),
        f"{predicted:.4f}",
    ]


def _charts(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    law = Chinchilla(*(report[name] for name in ("A", "B", "E", "alpha", "beta")))
    charts = [_loss_chart(law, rows), _error_chart(report, rows)]
    if report["isoflop"]["curves"]:
        charts.append(_isoflop_chart(report["isoflop"]["curves"]))
    return charts


def _loss_chart(law: Chinchilla, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lengths = sorted({row["tokens"] for row in rows})
    shown = [lengths[place] for place in _spread(len(lengths))]
    sizes = np.geomspace(*_range([row["parameters"] for row in rows]), 60)
    series = []
    for shade, tokens in enumerate(shown):
        mine = [row for row in rows if row["tokens"] == tokens]
        dots = Curve("", [r["parameters"] for r in mine], [r["loss"] for r in mine], shade)
        series.append((dots, Curve("", sizes.tolist(), law.loss(sizes, tokens).tolist(), shade)))
    return {
        "title": "Loss in nats a token, on held-out text",
        "svg": law_plot(series, x_label="parameters", y_label="loss", floor=law.E),
        "legend": [(f"{tokens:.3g} tokens", shade) for shade, tokens in enumerate(shown)],
        "note": "Dots are runs, curves the law; dashed is its floor E.",
    }


def _error_chart(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    errors = [100 * row["log_error"] for row in report["residuals"]["rows"]]
    dots = Curve("", [row["flops"] for row in rows], errors, 2)
    return {
        "title": "Loss above what the law says, percent",
        "svg": law_plot([(dots, None)], x_label="FLOPs", y_label="percent", floor=0.0),
        "legend": [],
        "note": "A slope would say that the law is wrong, and most so for larger runs.",
    }


def _isoflop_chart(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [curves[place] for place in _spread(len(curves))]
    series = []
    for shade, curve in enumerate(shown):
        sizes, losses = zip(*curve["points"], strict=True)
        line = None
        if curve["parabola"] is not None:
            c2, c1, c0, middle = curve["parabola"]
            across = np.geomspace(*_range(sizes), 40)
            x = np.log(across) - middle
            line = Curve("", across.tolist(), (c0 + c1 * x + c2 * x**2).tolist(), shade)
        series.append((Curve("", sizes, losses, shade), line))
    return {
        "title": "IsoFLOP curves: loss of equal budgets",
        "svg": law_plot(series, x_label="parameters", y_label="loss"),
        "legend": [(f"{curve['flops']:.2e} FLOPs", n) for n, curve in enumerate(shown)],
        "note": "A parabola in log N each. Its minimum is off where the sizes lie on one side.",
    }


def _spread(number: int) -> list[int]:
    """Return the places of at most as many as there are colours, spread evenly."""
    most = min(number, MOST_CURVES)
    return sorted({round(place) for place in np.linspace(0, number - 1, most)})


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
