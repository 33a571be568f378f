"""Plots that take colours from the page and stand beside each other."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.report.charts import (
    checkpoints_against_kl,
    over_optimisation,
    stage_charts,
)
from pipeline.evaluation.report.plots import (
    POINTS,
    Curve,
    Point,
    line_plot,
    point_plot,
    smooth,
    thin,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=700)


@pytest.mark.drawn
def test_a_plot_has_no_colour_font_or_address_of_its_own() -> None:
    svg = line_plot([Curve("loss", [0, 1, 2], [3.0, 2.0, 1.0], 2)], x_label="step")
    ElementTree.fromstring(svg)
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    assert "font-family" not in svg
    assert "http" not in svg
    assert "var(--s2)" in svg
    assert "currentColor" in svg


@pytest.mark.drawn
def test_labels_are_text_and_no_formulas() -> None:
    label = "a $x^2$ <b> & \\frac"
    svg = point_plot([Point(label, 0, 0, -1, 1, 0)], x_label="x", y_label="$y$")
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert label in texts
    assert "$y$" in texts


def test_long_curves_are_thinned_to_means() -> None:
    x, y = thin(range(2 * POINTS), [float(i % 2) for i in range(2 * POINTS)])
    assert len(x) == POINTS
    assert set(y) == {0.5}
    assert x[0] == 0.5


@given(VALUES)
def test_smoothing_keeps_length_range_and_start(values: list[float]) -> None:
    found = smooth(values)
    assert len(found) == len(values)
    assert min(values) - 1e-9 <= min(found)
    assert max(found) <= max(values) + 1e-9
    assert found[0] == pytest.approx(values[0])


def test_the_last_value_alone_does_not_bend_a_smooth_curve() -> None:
    found = smooth([0.0] * 47 + [1.0])
    assert found[-1] == pytest.approx(1 / 3)


def test_a_stage_gets_the_panels_it_logged() -> None:
    rows = [{"step": i, "objective/kl": 0.1 * i, "objective/scores": 1.0} for i in range(5)]
    assert [chart.title for chart in stage_charts("ppo", rows)] == [
        "Reward model's score",
        "KL to the reference, nats",
    ]
    told = [{"step": i, "evaluation/scores": 1.0, "evaluation/gold": 0.5} for i in (0, 5, 10)]
    assert [chart.title for chart in stage_charts("ppo", told)] == [
        "Reward, prompts kept apart",
        "Second judge, prompts kept apart",
    ]
    assert stage_charts("ppo", [{"step": 0, "objective/kl": float("nan")}]) == []
    learned = [{"step": i, "eval/loss": 1.0, "eval/accuracy": 0.5} for i in range(5)]
    titles = [chart.title for chart in stage_charts("pretrain", learned)]
    assert titles == ["Loss", "Tokens told right, held out"]
    assert stage_charts("tokenizer", []) == []
    assert [c.title for c in stage_charts("another", [{"step": 0, "train/loss": 1}])] == ["Loss"]


def test_one_update_is_no_curve_of_reward_against_kl() -> None:
    row = {"step": 0, "objective/kl": 0.0, "objective/scores": 1.0}
    assert over_optimisation([row]) is None
    assert over_optimisation([row, {"step": 1}, {**row, "step": 2}]) is not None


@pytest.mark.drawn
def test_checkpoints_prompted_otherwise_are_not_compared_by_kl() -> None:
    figures = {"kl_to_reference": 1.0, "gold_reward": 0.5, "gold_reward_ci95": [0.4, 0.6]}
    shades = {"base": 0, "sft": 1, "ppo": 2}
    base = {"base": {**figures, "plain_prompts": True}}
    assert checkpoints_against_kl({**base, "sft": figures}, "gold", shades) is None
    chart = checkpoints_against_kl({**base, "sft": figures, "ppo": figures}, "gold", shades)
    assert chart is not None
    assert ">sft<" in chart.svg
    assert ">base<" not in chart.svg


@pytest.mark.drawn
def test_reward_against_kl_is_of_what_the_reward_model_said() -> None:
    rows = [
        {
            "step": i,
            "objective/kl": 1.0 * i,
            "objective/scores": 1.0,
            "objective/scores_raw": 7.0 * i,
        }
        for i in range(4)
    ]
    chart = over_optimisation(rows)
    assert chart is not None
    # The axis reaches 21, where a clip at 1 would have kept it flat.
    assert ">20<" in chart.svg.replace(" ", "")
