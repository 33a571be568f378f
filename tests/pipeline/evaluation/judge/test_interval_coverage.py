"""The fast part of the simulation of tests/benchmarks/interval_coverage.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "interval_coverage.py"
spec = importlib.util.spec_from_file_location("interval_coverage", SCRIPT)
assert spec is not None
simulation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulation)


REFITTED = [name for name in simulation.METHODS if name.startswith(("length", "Bradley"))]


ONCE = ("F1 of classes", "area of risk", "calibration error", "temperature")
"""At .95 a few single answers make the figure of the first two; the others have no ties."""


@pytest.mark.parametrize(
    ("name", "ties"),
    [
        (name, ties)
        for name in simulation.METHODS
        for ties in (0.5, 0.95)
        if name not in REFITTED and (ties == 0.5 or name not in ONCE)
    ],
)
def test_nineteen_of_twenty_intervals_hold_the_truth(name: str, ties: float) -> None:
    # The standard error of a share of 200 is .015. With 95 % ties, five prompts are decided.
    share, _ = simulation.coverage(name, n=100, ties=ties, trials=200)
    assert 0.905 <= share <= (0.985 if ties < 0.9 else 1)


@pytest.mark.parametrize("name", REFITTED)
def test_so_do_intervals_with_refits_where_almost_everything_ties(name: str) -> None:
    share, width = simulation.coverage(name, n=60, ties=0.95, trials=60, resamples=100)
    assert share >= 0.93
    assert width < simulation.coverage(name, n=60, ties=0.0, trials=10, resamples=100)[1] / 2
