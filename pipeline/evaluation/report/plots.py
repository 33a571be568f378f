"""Plots of the report as SVG text that takes its colours and fonts from the page.

matplotlib is imported here alone, and on the first plot. It draws in stand-in colours, which are
then replaced by CSS variables, so that one picture serves light and dark pages. Nothing in the SVG
refers to anything outside it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

INK, FAINT = "#010101", "#020202"
SERIES = tuple(f"#0303{place:02d}" for place in range(10, 18))
"""Stand-ins: text and axes, grid, and the series `--s0` to `--s7` of the page."""
OWN = "own-plot-id-"
"""Prefix of the ids in a plot; `numbered` replaces it, so that plots of a page differ."""
POINTS = 240
"""Curves of more points are averaged to so many."""


@dataclass(frozen=True)
class Curve:
    """One line of a plot; NaN-free, x ascending.

    Attributes:
        label: what the legend calls it.
        x: steps.
        y: values.
        colour: number of the page's series colour.
        dots: marks each value, for few of them.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dots: bool = False


@dataclass(frozen=True)
class Point:
    """A labelled value with its interval."""

    label: str
    x: float
    y: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True)
class Trace:
    """One quantity over an axis that it shares with others, with intervals where there are any."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    ci95: Sequence[Sequence[float] | None]
    colour: int


def line_plot(curves: Sequence[Curve], *, x_label: str, percent: bool = False) -> str:
    """Return curves over steps as SVG."""
    figure, axes = _figure()
    for curve in curves:
        x, y = thin(curve.x, curve.y)
        colour = SERIES[curve.colour % len(SERIES)]
        marker = "o" if curve.dots or len(x) == 1 else ""
        if marker or len(curve.x) < 40:
            axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
        else:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(x, smooth(y), color=colour, linewidth=1.8)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel(x_label)
    return _svg(figure)


def path_plot(x: Sequence[float], y: Sequence[float], *, x_label: str, y_label: str) -> str:
    """Return one quantity against another over time as SVG, from an open to a filled end."""
    figure, axes = _figure(width=3.9, height=2.6)
    _, across = thin(range(len(x)), x)
    _, up = thin(range(len(y)), y)
    axes.plot(across, up, color=SERIES[2], linewidth=0.7, alpha=0.35, marker=".", markersize=4)
    path = smooth(across), smooth(up)
    axes.plot(*path, color=SERIES[2], linewidth=2.0)
    axes.plot(path[0][:1], path[1][:1], "o", color=SERIES[0], markersize=6)
    axes.plot(path[0][-1:], path[1][-1:], "o", color=SERIES[1], markersize=6)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return _svg(figure)


def point_plot(points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Return labelled values with their intervals as SVG."""
    figure, axes = _figure(width=3.9, height=2.6)
    ordered = sorted(points, key=lambda point: point.x)
    axes.plot([p.x for p in ordered], [p.y for p in ordered], color=FAINT, linewidth=1, zorder=1)
    for point in ordered:
        colour = SERIES[point.colour % len(SERIES)]
        axes.plot([point.x] * 2, [point.low, point.high], color=colour, linewidth=1.4)
        axes.plot([point.x], [point.y], "o", color=colour, markersize=6)
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(7, 5),
            textcoords="offset points",
            color=INK,
            parse_math=False,
        )
    axes.margins(x=0.16, y=0.14)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return _svg(figure)


def stacked_plot(traces: Sequence[Trace], *, x_label: str, mark: float | None = None) -> str:
    """Return quantities of different scales over one axis as SVG, one above the other.

    Args:
        traces: what is drawn, the uppermost first.
        x_label: of the common axis.
        mark: a place on it that is marked in all of them.
    """
    figure, all_axes = _figure(width=3.9, height=1.0 + 1.35 * len(traces), rows=len(traces))
    for trace, axes in zip(traces, all_axes, strict=True):
        colour = SERIES[trace.colour % len(SERIES)]
        axes.plot(trace.x, trace.y, color=colour, linewidth=1.6, marker="o", markersize=3.5)
        for x, ends in zip(trace.x, trace.ci95, strict=True):
            if ends is not None:
                axes.plot([x, x], ends, color=colour, linewidth=1.1, alpha=0.55)
        axes.set_ylabel(trace.label)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1.0, linestyle=(0, (3, 3)))
    all_axes[-1].set_xlabel(x_label)
    for axes in all_axes[:-1]:
        axes.tick_params(labelbottom=False)
    return _svg(figure)


def reliability_plot(points: Sequence[Point]) -> str:
    """Return how often something came true against how sure one was of it, as SVG, 0.5 to 1."""
    figure, axes = _figure(width=3.9, height=2.6)
    axes.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    for point in points:
        axes.plot([point.x] * 2, [point.low, point.high], color=SERIES[point.colour], linewidth=1.2)
    colour = SERIES[points[0].colour]
    axes.plot(
        [p.x for p in points],
        [p.y for p in points],
        "o-",
        color=colour,
        markersize=5,
        linewidth=1.4,
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("how sure the score is")
    axes.set_ylabel("how often it is right")
    return _svg(figure)


def law_plot(
    series: Sequence[tuple[Curve, Curve | None]],
    *,
    x_label: str,
    y_label: str,
    floor: float | None = None,
) -> str:
    """Return measured points with the curve that was fitted to them, over a logarithmic axis.

    Args:
        series: points, and their curve if there is one, in the colour of the points.
        x_label: of the logarithmic axis.
        y_label: of the other one.
        floor: a height that is marked.
    """
    from matplotlib.ticker import NullFormatter

    figure, axes = _figure(width=5.2, height=3.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for points, curve in series:
        colour = SERIES[points.colour % len(SERIES)]
        axes.plot(points.x, points.y, "o", color=colour, markersize=4)
        if curve is not None:
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.2)
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=1.0, linestyle=(0, (3, 3)))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return _svg(figure)


def numbered(svg: str, number: int) -> str:
    """Return a plot whose ids are those of the page's plot of this number."""
    return svg.replace(OWN, f"plot{number}-")


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return a curve of at most `POINTS` points, each the mean of its neighbours."""
    count = len(x)
    if count <= POINTS:
        return [float(v) for v in x], [float(v) for v in y]
    edges = [round(i * count / POINTS) for i in range(POINTS + 1)]
    spans = list(pairwise(edges))
    return [_mean(x[a:b]) for a, b in spans], [_mean(y[a:b]) for a, b in spans]


def smooth(values: Sequence[float]) -> list[float]:
    """Return a running mean over a window of a twelfth of the values.

    At the start it narrows to the value itself, where training moves fast; at the end it keeps its
    reach to the left, so that the last value alone does not bend the curve.
    """
    half = max(1, len(values) // 24)
    means = []
    for i in range(len(values)):
        reach = min(half, i)
        means.append(_mean(values[i - reach : i + reach + 1]))
    return means


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 1.0,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.limits": (-4, 5),
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}


def _figure(*, width: float = 3.7, height: float = 2.2, rows: int = 0) -> tuple[Any, Any]:
    """Return a figure and its axes; with `rows` a list of them, which share the horizontal one."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(dict(_STYLE)):
        figure = Figure(figsize=(width, height), layout="constrained")
        drawn = list(figure.subplots(rows or 1, 1, sharex=True, squeeze=False)[:, 0])
    for axes in drawn:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.margins(x=0.02, y=0.08)
    return figure, drawn if rows else drawn[0]


def _svg(figure: Any) -> str:
    """Return a figure as an `<svg>` element that can stand in a page beside others."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(dict(_STYLE)), warnings.catch_warnings():
        # Text stays text, which the page's fonts draw: matplotlib's own only measure it.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _page_colours(_standing_alone(buffer.getvalue()))


def _page_colours(svg: str) -> str:
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--grid)")
    for place, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--s{place})")
    return svg


def _standing_alone(svg: str) -> str:
    """Drop the XML prologue, metadata, sizes and namespaces, and make ids the page's own."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', head)
    assert view is not None, "matplotlib writes a viewBox"
    head = f'<svg {view[0]} role="img" aria-hidden="true"'
    rest = re.sub(r"<style[^>]*>.*?</style>", "", rest, flags=re.DOTALL)
    rest = rest.replace("xlink:href", "href")
    # Each plot repeats ids such as "axes_1". Those that something refers to stay, as `OWN` ids.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', rest))
    rest = re.sub(r' id="([^"]+)"', lambda m: f' id="{OWN}{m[1]}"' if m[1] in used else "", rest)
    rest = re.sub(r'(url\(|href=")#', rf"\1#{OWN}", rest)
    # The page's font, not the one that matplotlib measured with.
    rest = re.sub(r"font-family: [^;\"]+;? ?", "", rest)
    return f"{head}>{rest}"
