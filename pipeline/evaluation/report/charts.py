"""Which plots the report draws of which stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.report.plots import (
    Curve,
    Point,
    Trace,
    line_plot,
    path_plot,
    point_plot,
    reliability_plot,
    stacked_plot,
)

TRAINING, HELD_OUT = 2, 1
"""Series colours."""
SCORES = ("objective/scores_raw", "objective/scores")
"""What the reward model said, and what PPO was paid, which stands in where the first is missing."""


@dataclass(frozen=True)
class Panel:
    """One plot of a stage: metrics that share an axis.

    Attributes:
        title: what is plotted.
        metrics: metric -> what the legend calls it.
        percent: whether the values are shares.
        instead: metric -> the one to plot where a run did not log it.
    """

    title: str
    metrics: Mapping[str, str]
    percent: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """A plot with its title and legend.

    Attributes:
        title: what is plotted.
        svg: the picture.
        legend: label and series colour of each line, where there is more than one.
        note: how to read it.
    """

    title: str
    svg: str
    legend: Sequence[tuple[str, int]] = field(default=())
    note: str = ""


_LOSS = Panel("Loss", {"train/loss": "training", "eval/loss": "held out"})
_RANKED = Panel(
    "Pairs ranked right",
    {"train/accuracy": "training", "eval/accuracy": "held out"},
    percent=True,
)
_MARGIN = Panel(
    "Reward of the better answer less that of the other",
    {"train/margin": "training", "eval/margin": "held out"},
)
_ONLINE = (
    Panel("Reward model's score", {SCORES[0]: "score"}, instead={SCORES[0]: SCORES[1]}),
    Panel("KL to the reference, nats", {"objective/kl": "KL"}),
    Panel("Response length, tokens", {"objective/response_length": "length"}),
)
_KEPT_APART = (
    Panel("Reward, prompts kept apart", {"evaluation/scores": "kept apart"}),
    Panel("Second judge, prompts kept apart", {"evaluation/gold": "kept apart"}),
)
_GROUPS = Panel("Groups of one score", {"objective/equal_groups_share": "share"}, percent=True)
PANELS: Mapping[str, Sequence[Panel]] = {
    "pretrain": (
        _LOSS,
        Panel("Bits per byte, held out", {"eval/bits_per_byte": "held out"}),
        Panel("Tokens told right, held out", {"eval/accuracy": "held out"}, percent=True),
    ),
    "distill": (
        Panel("Loss of distillation", {"train/loss": "training"}),
        Panel("Loss, held out", {"eval/loss": "held out"}),
    ),
    "finetune": (_LOSS, Panel("F1, held out", {"eval/f1": "held out"}, percent=True)),
    "sft": (_LOSS,),
    "reward": (_LOSS, _RANKED),
    "dpo": (_LOSS, _RANKED, _MARGIN),
    "kto": (_LOSS, _MARGIN, Panel("KL to the reference, nats", {"train/kl": "KL"})),
    "grpo": (_ONLINE[0], *_KEPT_APART, *_ONLINE[1:], _GROUPS),
    "rloo": (_ONLINE[0], *_KEPT_APART, *_ONLINE[1:], _GROUPS),
    "ppo": (
        _ONLINE[0],
        *_KEPT_APART,
        *_ONLINE[1:],
        Panel("Entropy, nats", {"objective/entropy": "entropy"}),
        Panel("Value loss", {"loss/value_avg": "value loss"}),
        Panel("Clipped share", {"policy/clipfrac_avg": "clipped"}, percent=True),
    ),
}


def stage_charts(kind: str, rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the training curves of a stage; those that it did not log are left out."""
    x_label = "update" if kind in ("ppo", "grpo", "rloo") else "step"
    charts = []
    for panel in PANELS.get(kind, (_LOSS,)):
        curves = [
            Curve(
                label, *values, colour=HELD_OUT if key.startswith("eval") else TRAINING, dots=sparse
            )
            for key, label in panel.metrics.items()
            for values, sparse in [_series(rows, _logged(rows, key, panel.instead))]
            if values[0]
        ]
        if curves:
            legend = [(curve.label, curve.colour) for curve in curves]
            svg = line_plot(curves, x_label=x_label, percent=panel.percent)
            charts.append(Chart(panel.title, svg, legend if len(legend) > 1 else ()))
    return charts


def runs_charts(
    kind: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], colours: Mapping[str, int]
) -> list[Chart]:
    """Return the curves of a stage in several runs over each other, a chart a metric."""
    x_label = "update" if kind in ("ppo", "grpo", "rloo") else "step"
    charts = []
    for panel in PANELS.get(kind, (_LOSS,)):
        for key, label in panel.metrics.items():
            curves = [
                Curve(run, *values, colour=colours[run], dots=sparse)
                for run, rows in runs.items()
                for values, sparse in [_series(rows, _logged(rows, key, panel.instead))]
                if values[0]
            ]
            if curves:
                title = f"{panel.title}, {label}" if len(panel.metrics) > 1 else panel.title
                svg = line_plot(curves, x_label=x_label, percent=panel.percent)
                charts.append(Chart(title, svg, [(curve.label, curve.colour) for curve in curves]))
    return charts


def stage_figures(kind: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last value of each metric that is plotted of a stage, by its name in the plots."""
    found = {}
    for panel in PANELS.get(kind, (_LOSS,)):
        for key, label in panel.metrics.items():
            _, values = _series(rows, _logged(rows, key, panel.instead))[0]
            if values:
                several = len(panel.metrics) > 1
                found[f"{panel.title}, {label}" if several else panel.title] = values[-1]
    return found


def _logged(rows: Sequence[Mapping[str, Any]], key: str, instead: Mapping[str, str]) -> str:
    """Return a metric, or what stands for it in runs that did not log it."""
    return key if any(_is_number(row.get(key)) for row in rows) else instead.get(key, key)


def _series(
    rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[tuple[list[float], list[float]], bool]:
    """Return steps and values of a metric, and whether they are few beside all steps."""
    points = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    ]
    values = [step for step, _ in points], [value for _, value in points]
    return values, len(points) < 0.5 * len(rows) and len(points) < 60


def over_optimisation(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Return the reward model's score against KL over the updates of PPO.

    The raw score: what PPO is paid is clipped and shaped, and levels off where the clip begins.
    """
    key = _logged(rows, SCORES[0], {SCORES[0]: SCORES[1]})
    points = [
        (float(row["objective/kl"]), float(row[key]))
        for row in rows
        if _is_number(row.get("objective/kl")) and _is_number(row.get(key))
    ]
    if len(points) < 2:
        return None
    svg = path_plot(
        [kl for kl, _ in points],
        [score for _, score in points],
        x_label="KL to the reference, nats a response",
        y_label="reward model's score",
    )
    note = (
        "What the reward model pays for each step away from the reference. A curve that flattens "
        "while KL grows, or a gold reward that falls while this one rises, is over-optimisation."
    )
    return Chart("Reward against KL in PPO", svg, [("first update", 0), ("last update", 1)], note)


def gold_and_proxy(found: Mapping[str, Any]) -> Chart | None:
    """Return what a judge apart and the reward model say over the square root of KL.

    As Gao et al. (2022) draw it: gold that turns while the proxy goes on is over-optimisation.
    """
    points = sorted(found.get("points") or (), key=lambda point: float(point["kl"]))
    judge = str(found.get("judge", "gold"))
    traces = [
        Trace(
            label,
            [math.sqrt(max(0.0, point["kl"])) for point in points if point.get(key) is not None],
            [point[key] for point in points if point.get(key) is not None],
            [point.get(f"{key}_ci95") for point in points if point.get(key) is not None],
            colour,
        )
        for label, key, colour in ((judge, "gold", 1), ("reward model", "proxy", 2))
    ]
    traces = [trace for trace in traces if len(trace.x) > 1]
    if not traces:
        return None
    turn = found.get("turn")
    mark = math.sqrt(max(0.0, turn["kl"])) if turn else None
    sentence = str(found.get("sentence") or "").rstrip(".")
    note = f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""
    if turn:
        note += f" The dashed line is the turn of {judge}."
    source = {"ppo": "along PPO", "best_of_n": "by best-of-n"}.get(str(found.get("source")), "")
    svg = stacked_plot(traces, x_label="square root of KL to the reference", mark=mark)
    title = f"{judge[:1].upper()}{judge[1:]} and reward model {source}"
    return Chart(title.strip(), svg, (), note.strip())


def reliability(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Return how often the reward model is right beside how sure its scores are."""
    points = [
        Point("", row["confidence"], row["accuracy"], low, high, 2)
        for row in rows
        for low, high in [row.get("ci95") or (row["accuracy"], row["accuracy"])]
    ]
    if len(points) < 2:
        return None
    note = (
        "Pairs kept from its training, by the sigmoid of their difference in score, which on the "
        "dashed line can be read as a probability."
    )
    return Chart("Calibration", reliability_plot(points), (), note)


def risk_coverage(rows: Sequence[Mapping[str, Any]], colours: Mapping[str, int]) -> Chart | None:
    """Return how many answers are not right, of those that each checkpoint is surest of."""
    curves = [
        Curve(row["checkpoint"], shares, risks, colours[row["checkpoint"]])
        for row in rows
        if row["source"] == "prompts" and row["risk_coverage"]
        for shares, risks in [zip(*row["risk_coverage"]["curve"], strict=True)]
    ]
    if not curves:
        return None
    legend = tuple((curve.label, curve.colour) for curve in curves)
    svg = line_plot(curves, x_label="share of the prompts that is answered", percent=True)
    note = (
        "Answers that are not right, where those are left out that a checkpoint is least sure of."
    )
    return Chart("Risk by coverage", svg, legend, note)


def checkpoints_against_kl(
    checkpoints: Mapping[str, Mapping[str, Any]], judge: str, colours: Mapping[str, int]
) -> Chart | None:
    """Return a judge's mean reward of each checkpoint over the square root of its KL, as Gao et al.

    Checkpoints prompted without the chat template are left out: their KL compares other inputs.
    """
    points = [
        Point(name, root, f[f"{judge}_reward"], low, high, colours[name])
        for name, f in checkpoints.items()
        if not f.get("plain_prompts")
        and f.get("kl_to_reference") is not None
        and f.get(f"{judge}_reward") is not None
        for low, high in [f[f"{judge}_reward_ci95"]]
        for root in [math.sqrt(max(0.0, f["kl_to_reference"]))]
    ]
    if len(points) < 2:
        return None
    svg = point_plot(
        points, x_label="square root of KL to the reference", y_label=f"{judge} reward"
    )
    note = "On the evaluation's prompts, with 95 % intervals."
    return Chart(f"{judge.capitalize()} reward against KL, by checkpoint", svg, (), note)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
