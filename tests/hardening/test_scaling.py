"""Files of points that no law can be fitted on: each is told with its line and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Rlhf = Callable[..., Any]
Refused = Callable[..., None]

HEAD = "parameters,tokens,loss\n"
GOOD = "".join(f"{n},{d},{1 + 9 / n + 9 / d}\n" for n in (10, 20, 40) for d in (10, 30, 90))

BAD: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "diverged": ("p.csv", HEAD + GOOD + "80,90,nan\n", ("p.csv:11", "'loss'", "'nan'")),
    "no number": ("p.csv", HEAD + "a million,9,2\n" + GOOD, ("p.csv:2", "'parameters'", "million")),
    "below 0": ("p.csv", HEAD + GOOD + "80,90,-1.5\n", ("p.csv:11", "-1.5", "leave it out")),
    "none": ("p.csv", HEAD + GOOD + "80,0,1.5\n", ("p.csv:11", "'tokens'", "holds 0")),
    "empty": ("p.csv", HEAD + GOOD + "80,,1.5\n", ("p.csv:11", "'tokens'")),
    "huge": ("p.csv", HEAD + GOOD + "1e300,90,1.5\n", ("p.csv:11", "1e+300", "below")),
    "no column": ("p.csv", "params,tokens,loss\n" + GOOD, ("p.csv:2", "'parameters'", "'params'")),
    "a field less": ("p.csv", HEAD + GOOD + "80,90\n", ("p.csv:11", "fields", "leave it out")),
    "flops missing": (
        "p.jsonl",
        '{"parameters": 1, "tokens": 2, "loss": 3, "flops": 4}\n'
        '{"parameters": 1, "tokens": 2, "loss": 3}\n',
        ("p.jsonl:2", "no column 'flops'"),
    ),
    "true": ("p.jsonl", '{"parameters": true, "tokens": 2, "loss": 3}\n', ("p.jsonl:1", "True")),
    "digits": (
        "p.jsonl",
        '{"parameters": ' + "9" * 400 + ', "tokens": 2, "loss": 3}\n',
        ("p.jsonl:1", "60 digits"),
    ),
    "no object": ("p.jsonl", "[1, 2, 3]\n", ("p.jsonl:1", "not a JSON object")),
    "no rows": ("p.csv", HEAD, ("p.csv", "0 points")),
    "nothing": ("p.csv", "", ("p.csv", "0 points")),
    "few": ("p.csv", HEAD + "10,10,3\n20,20,2\n", ("p.csv", "2 points", "add runs")),
    "other kind": ("p.xlsx", "PK", ("p.xlsx", ".csv")),
}


@pytest.mark.parametrize("case", BAD)
def test_points_that_are_none_are_refused(rlhf: Rlhf, assert_refused: Refused, case: str) -> None:
    name, content, words = BAD[case]
    assert_refused(rlhf(["scaling", "fit", name], {name: content}), *words)


def test_a_file_that_is_not_there_is_told(rlhf: Rlhf, assert_refused: Refused) -> None:
    assert_refused(rlhf(["scaling", "fit", "nope.csv"]), "nope.csv")


EQUAL = HEAD + "".join(f"{n},{d},2.0\n" for n in (10, 20, 40) for d in (10, 30, 90))
STEEP = HEAD + "".join(f"{n},{d},{9e29 / n**9}\n" for n in (1, 1e3, 1e6) for d in (1, 1e9, 1e29))


@pytest.mark.usefixtures("brief_fits")
@pytest.mark.parametrize("content", [EQUAL, STEEP], ids=["equal", "steep"])
def test_losses_that_follow_no_law_are_fitted_and_what_is_not_told_is_said(
    rlhf: Rlhf, content: str
) -> None:
    args = ["scaling", "fit", "p.csv", "--resamples", "40"]
    result = rlhf([*args, "--json"], {"p.csv": content}, seconds=120)
    assert result.code == 0, result.err
    assert json.loads(result.out, parse_constant=pytest.fail)["untold"]


BUDGETS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "none": ([], ("--flops 1e21", "--hours")),
    "both": (["--flops", "1", "--hours", "1", "--gpus", "H100"], ("--flops 1e21",)),
    "hours alone": (["--hours", "1"], ("--gpus",)),
    "gpus alone": (["--flops", "1", "--gpus", "H100"], ("--hours",)),
    "no number": (["--flops", "much"], ("--flops", "'much'")),
    "0": (["--flops", "0"], ("--flops", "'0'")),
    "no hours": (["--hours", "0", "--gpus", "H100"], ("--hours 0",)),
    "no such GPU": (["--hours", "1", "--gpus", "H1000"], ("H1000", "H100-80GB")),
    "share": (["--hours", "1", "--gpus", "H100", "--utilisation", "2"], ("--utilisation 2",)),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_budgets_that_are_none_are_refused(rlhf: Rlhf, assert_refused: Refused, case: str) -> None:
    options, words = BUDGETS[case]
    assert_refused(rlhf(["scaling", "plan", "p.csv", *options], {"p.csv": HEAD + GOOD}), *words)
