"""`rlhf scaling` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.scaling.laws import Chinchilla

pytestmark = pytest.mark.usefixtures("brief_fits")

LAW = Chinchilla(A=20.0, B=80.0, E=1.2, alpha=0.3, beta=0.32)


def grid(noise: float = 1e-4, *, sizes: int = 6, lengths: int = 5) -> list[dict[str, Any]]:
    """Return runs over sizes and lengths whose products are budgets that repeat."""
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"run{row}-{column}",
            "parameters": 30_000 * 2.5**row + 50_000,
            "tokens": 4e5 * 2.5**column,
            "loss": LAW.loss(30_000 * 2.5**row + 50_000, 4e5 * 2.5**column)
            * np.exp(rng.normal(0, noise)),
            "non_embedding_parameters": 30_000 * 2.5**row,
            "flops": 8 * (30_000 * 2.5**row) * 4e5 * 2.5**column,
        }
        for row in range(sizes)
        for column in range(lengths)
    ]


def as_csv(rows: list[dict[str, Any]], *columns: str) -> str:
    lines = [",".join(columns), *(",".join(str(row[c]) for c in columns) for row in rows)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def points(tmp_path: Path) -> Path:
    path = tmp_path / "points.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in grid()))
    return path


def test_a_fit_finds_the_planted_law_and_tells_it(rlhf: Callable[..., Any], points: Path) -> None:
    result = rlhf("scaling", "fit", points, "--json", "--resamples", "60")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    for name in ("A", "B", "E", "alpha", "beta"):
        assert found[name] == pytest.approx(getattr(LAW, name), rel=0.05)
        low, high = found["ci95"][name]
        assert low <= high and low == pytest.approx(high, rel=0.2)
    assert found["ignored_columns"] == ["name"]
    assert found["flops"] == "column"
    assert found["residuals"]["rms"] < 3e-4
    assert len(found["residuals"]["rows"]) == found["points"] == 30


def test_the_largest_run_is_predicted_by_the_smaller_ones(
    rlhf: Callable[..., Any], points: Path
) -> None:
    held = json.loads(rlhf("scaling", "fit", points, "--json", "--resamples", "40").out)["held_out"]
    assert (held["runs"], held["fitted_on"]) == (6, 24)
    largest = held["largest"]
    assert largest["tokens"] == 4e5 * 2.5**4
    assert abs(largest["error"]) < 2e-3
    # A law without a floor predicts too little of what only falls to one; no law, far too much.
    assert abs(largest["kaplan_error"]) > abs(largest["error"])
    assert largest["lowest_smaller_error"] > 0.01
    assert held["mean_error"] < held["kaplan_mean_error"]


def test_isoflop_curves_have_their_minima_near_the_laws(
    rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [{**row, "parameters": row["non_embedding_parameters"]} for row in grid()]
    for row in rows:
        row["loss"] = LAW.loss(row["parameters"], row["tokens"])
    (tmp_path / "p.csv").write_text(as_csv(rows, "parameters", "tokens", "loss"))
    found = json.loads(rlhf("scaling", "fit", "p.csv", "--json", "--resamples", "40").out)
    curves = found["isoflop"]["curves"]
    assert [len(curve["points"]) for curve in curves] == [3, 4, 5, 5, 4, 3]
    inside = [c for c in curves if c["best_parameters"] is not None]
    assert len(inside) >= 3
    for curve in inside:
        assert curve["best_parameters"] == pytest.approx(curve["law_parameters"], rel=0.25)
    assert all(c["note"] for c in curves if c["best_parameters"] is None)


def test_the_lines_tell_coefficients_intervals_and_why_kaplans_law_differs(
    rlhf: Callable[..., Any], points: Path
) -> None:
    out = rlhf("scaling", "fit", points, "--resamples", "40").out
    assert "30 runs; N 8e+04 to 2.98e+06, D 4e+05 to 1.56e+07" in out
    assert "columns not read: name" in out
    for name in ("A", "B", "E", "alpha", "beta"):
        assert any(line.startswith(f"  {name} ") and "[" in line for line in out.splitlines())
    # 50,000 of 80,000 parameters of the smallest are embeddings; of 2,979,688 of the largest 2 %.
    assert "Kaplan's N leaves out embeddings, 2% to 62% of the parameters here" in out


def test_a_table_of_other_names_is_read_by_columns(
    rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [{**row, "n": row["parameters"]} for row in grid()]
    (tmp_path / "p.csv").write_text(as_csv(rows, "n", "tokens", "loss"))
    refused = rlhf("scaling", "fit", "p.csv")
    assert refused.code == 2
    assert "p.csv:2: no column 'parameters'; columns: n, tokens, loss." in refused.err
    taken = rlhf(
        "scaling", "fit", "p.csv", "--column", "parameters=n", "--json", "--resamples", "40"
    )
    found = json.loads(taken.out)
    assert (found["flops"], found["kaplan"]["parameters"]) == ("6ND", "all")
    assert found["range"]["flops"][0] == pytest.approx(6 * 80_000 * 4e5)


def test_the_same_points_give_the_same_figures(rlhf: Callable[..., Any], points: Path) -> None:
    first = rlhf("scaling", "fit", points, "--json", "--resamples", "40").out
    assert first == rlhf("scaling", "fit", points, "--json", "--resamples", "40").out
    other = rlhf("scaling", "fit", points, "--json", "--resamples", "40", "--seed", "1").out
    assert json.loads(first)["E"] == json.loads(other)["E"]
    assert json.loads(first)["ci95"] != json.loads(other)["ci95"]


@pytest.mark.parametrize("what", ["alpha", "beta"])
def test_what_the_runs_do_not_tell_is_said(
    rlhf: Callable[..., Any], tmp_path: Path, what: str
) -> None:
    rows = grid()
    for row in rows:
        kept = row["tokens"] if what == "alpha" else row["parameters"]
        row["loss"] = 1.2 + 80 * kept**-0.32
    (tmp_path / "p.csv").write_text(as_csv(rows, "parameters", "tokens", "loss"))
    result = rlhf("scaling", "fit", "p.csv", "--json", "--resamples", "40")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [sentence.partition(":")[0] for sentence in found["untold"]] == [what]


def test_runs_that_follow_no_such_law_are_told(rlhf: Callable[..., Any], tmp_path: Path) -> None:
    for noise, told in ((0.1, True), (1e-3, False)):
        (tmp_path / "p.csv").write_text(as_csv(grid(noise), "parameters", "tokens", "loss"))
        for args in (["fit", "p.csv"], ["plan", "p.csv", "--flops", "1e13"]):
            out = rlhf("scaling", *args, "--resamples", "40").out
            assert ("doubt: the law misses these runs by" in out) == told


def test_too_few_sizes_are_refused(rlhf: Callable[..., Any], tmp_path: Path) -> None:
    rows = grid(sizes=2)
    (tmp_path / "p.csv").write_text(as_csv(rows, "parameters", "tokens", "loss"))
    result = rlhf("scaling", "fit", "p.csv")
    assert result.code == 2
    assert "10 points with 2 different parameters and 5 different tokens" in result.err


def test_a_loss_that_is_no_number_is_refused(rlhf: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("parameters,tokens,loss\n1,1,nan\n")
    result = rlhf("scaling", "fit", "p.csv")
    assert result.code == 2
    assert "p.csv:2: column 'loss' holds 'nan', not a number; mend the row" in result.err


@pytest.mark.parametrize(
    "budget",
    [("--flops", "1e400"), ("--flops", "1e-300"), ("--hours", "inf", "--gpus", "8xH100-80GB")],
)
def test_a_budget_beyond_all_machines_is_refused(
    rlhf: Callable[..., Any], points: Path, budget: tuple[str, ...]
) -> None:
    result = rlhf("scaling", "plan", points, *budget)
    assert result.code == 2 and "FLOPs: give one from 1 to below 1e+30" in result.err


def test_a_plan_is_the_size_with_the_lowest_loss_for_its_flops(
    rlhf: Callable[..., Any], points: Path
) -> None:
    args = ["scaling", "plan", points, "--flops", "2e13", "--json", "--resamples", "40"]
    result = rlhf(*args)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    # flops of a run are 8 (N - 50,000) D, so that C0 is no constant: 3 of the smallest, 7.9.
    assert 3 < found["C0_ci95"][0] < found["C0"] < found["C0_ci95"][1] < 8
    product = 2e13 / found["C0"]
    assert found["parameters"] == pytest.approx(LAW.best_size(product), rel=0.05)
    assert found["parameters"] * found["tokens"] == pytest.approx(product)
    assert found["loss"] == pytest.approx(LAW.loss(found["parameters"], found["tokens"]), rel=2e-3)
    for name in ("parameters", "tokens", "loss"):
        assert found[f"{name}_ci95"][0] <= found[name] <= found[f"{name}_ci95"][1]
    assert found["extrapolates"] == []


def test_a_plan_beyond_the_runs_says_so(rlhf: Callable[..., Any], points: Path) -> None:
    out = rlhf("scaling", "plan", points, "--flops", "1e17", "--resamples", "40").out
    assert "extrapolates: the budget is 273 x the largest of the runs" in out
    assert "N is " in out and "D is " in out
    small = rlhf("scaling", "plan", points, "--flops", "1e10", "--resamples", "40").out
    assert "x the smallest of the runs" in small


def test_hours_on_named_hardware_are_flops(rlhf: Callable[..., Any], points: Path) -> None:
    few = ("--json", "--resamples", "40")
    hours = ("--hours", "2", "--gpus", "2xA100-40GB", "--nodes", "3", "--utilisation", "0.5")
    found = json.loads(rlhf("scaling", "plan", points, *hours, *few).out)
    assert found["flops"] == pytest.approx(2 * 3600 * 6 * 312e12 * 0.5)
    assert "6 x A100-40GB, 3 nodes at 50% (--utilisation, an assumption)" in found["hardware"]
    same = json.loads(rlhf("scaling", "plan", points, "--flops", str(found["flops"]), *few).out)
    assert same["parameters"] == found["parameters"]


def test_runs_that_do_not_tell_how_tokens_count_give_no_plan(
    rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    rows = grid()
    for row in rows:
        row["loss"] = 1.2 + 80 * row["parameters"] ** -0.32
    (tmp_path / "p.csv").write_text(as_csv(rows, "parameters", "tokens", "loss"))
    result = rlhf("scaling", "plan", "p.csv", "--flops", "1e14", "--resamples", "40")
    assert result.code == 2
    assert "the runs don't tell beta: how tokens count" in result.err
