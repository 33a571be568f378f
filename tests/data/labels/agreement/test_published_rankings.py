"""Agreement on rankings that others published, by figures that were counted without our code."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import krippendorff
import pytest

from data.labels.agreement.agreement import _turn
from data.labels.agreement.statistics import LabelStatistics, label_statistics
from data.labels.records import LabelRow

FIGURES = Path(__file__).parent / "figures"
WHO = ("first", "second", "third")


class Published(NamedTuple):
    """A table and what is true of it; shares as (same, of)."""

    name: str
    prompts: int
    labels: int
    agreement: tuple[int, int]
    agreement_no_ties: tuple[int, int]
    ties: tuple[int, int]
    alpha: float
    tau: float


TABLES = [
    Published("pandalm", 119, 2109, (1941, 2109), (1781, 1875), (197, 2109), 0.86280, 0.9478),
    Published("squality", 13, 195, (501, 585), (501, 585), (0, 585), 0.7071, 0.7745),
]


def read(name: str) -> list[dict[str, str]]:
    text = (FIGURES / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def ranks(text: str) -> list[int]:
    return [int(rank) for rank in text]


def report(rows: list[dict[str, str]], label: Callable[..., LabelRow]) -> LabelStatistics:
    labels = [
        label(f"{task}", who, ranks(row[who]), prompt=row["prompt"])
        for task, row in enumerate(rows)
        for who in WHO
    ]
    return label_statistics(labels)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_figures_of_published_rankings(
    table: Published, label: Callable[..., LabelRow]
) -> None:
    rows = read(table.name)
    found = report(rows, label)
    figures = found.whole.figures
    assert (found.whole.labels, found.overlapping) == (table.labels, len(rows))
    assert figures["agreement"].n == table.prompts
    for name, (same, of) in {
        "agreement": table.agreement,
        "agreement_no_ties": table.agreement_no_ties,
        "tie_rate": table.ties,
    }.items():
        assert figures[name].value == pytest.approx(same / of, rel=1e-12), name
    assert found.ceiling.low == figures["agreement_no_ties"].value
    assert figures["tau"].value == pytest.approx(table.tau, abs=5e-5)

    # A unit is a pair of answers, turned as ours is: only the turns are taken from our code.
    theirs = krippendorff.alpha(
        reliability_data=[
            [
                _turn(f"0\n{task}\n{place}") * ((b > a) - (b < a))
                for task, row in enumerate(rows)
                for place, (a, b) in enumerate(combinations(ranks(row[who]), 2))
            ]
            for who in WHO
        ],
        level_of_measurement="nominal",
    )
    assert figures["alpha_pairs"].value == pytest.approx(theirs, abs=1e-12)
    assert theirs == pytest.approx(table.alpha, abs=5e-5)
