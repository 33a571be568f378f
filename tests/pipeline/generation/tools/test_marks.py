"""Marked calculations: what is a slip, and what is no calculation."""

from __future__ import annotations

import pytest

from pipeline.generation.tools.marks import is_slip, slips


@pytest.mark.parametrize(
    ("expression", "result", "slip"),
    [
        ("48/2", "24", False),
        ("48/2", "25", True),
        ("10/3", "3.33", False),
        ("20/3", "6.67", False),  # rounded
        ("20/3", "6.66", False),  # cut off
        ("20/3", "6.65", True),
        ("7/2", "3", True),  # a whole number is meant exactly
        ("7/2", "3.0", True),
        ("12*20,000", "240,000", False),
        ("2 - 5", "-3", False),
        ("x+2", "5", None),
        ("1/0", "0", None),
        ("1+1", "two", None),
    ],
)
def test_a_slip_is_a_result_that_is_not_the_calculators(
    expression: str, result: str, slip: bool | None
) -> None:
    assert is_slip(expression, result) is slip


def test_all_marks_of_a_text_are_judged() -> None:
    text = "<<48/2=24>>24 and <<1+1=3>>3, then <<x+1=2>> and <<2*3=6=6>> and <<5*5=25"
    assert slips(text) == (1, 2)
