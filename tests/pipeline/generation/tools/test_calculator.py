"""The calculator: exact values, the grammar's order, and bounds on what a model may ask for."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generation.tools.calculator import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    CalculatorError,
    as_text,
    calculate,
)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("48/2", "24"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 3 * 3", "10"),
        ("10/3", "3.33333333333"),
        ("2/3", "0.666666666667"),
        ("12*20,000", "240000"),
        ("1,200.50 - .5", "1200"),
        ("50000*5%", "2500"),
        ("200 * (1 - 5%)^2", "180.5"),
        ("-2^2", "-4"),
        ("(-2)^2", "4"),
        ("2^-1", "0.5"),
        ("2^3^2", "512"),
        ("8 - 3 - 2", "3"),
        ("100 / 10 / 5", "2"),
        ("2 + 3 × 4 ÷ 2 − 1", "7"),
        ("--3", "3"),
        ("1.2e3", "1200"),
        ("3.", "3"),
        ("0^0", "1"),
        ("(-1)^99999999999999999999", "-1"),
        ("1/8", "0.125"),
        ("123456789 + 0.001", "123456789.001"),
        ("1e-40", "1E-40"),
    ],
)
def test_values(expression: str, result: str) -> None:
    assert as_text(calculate(expression)) == result


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("", "nothing to calculate"),
        ("   ", "nothing to calculate"),
        ("1/0", "division by zero"),
        ("0^-1", "division by zero"),
        ("5/(3-3)", "division by zero"),
        ("9^9^9", "too large"),
        ("9^99999999999999999999999999", "too large"),
        ("1e999*1e999*1e999", "too large"),
        ("2^0.5", "no whole number"),
        ("(1+2", "not closed"),
        ("1+2)", "operator is missing before '\\)'"),
        ("3 4", "operator is missing before '4'"),
        ("7 % 3", "operator is missing before '3'"),
        ("2(3)", "operator is missing"),
        ("1+", "missing at the end"),
        ("*3", "missing before '\\*'"),
        ("2x+1", "'x\\+1' is neither"),
        ("__import__('os')", "neither a number"),
        ("1,20 + 3", "neither a number"),
        ("<<1+1=2>>", "neither a number"),
        ("٣+1", "neither a number"),
    ],
)
def test_what_has_no_value_says_why(expression: str, told: str) -> None:
    with pytest.raises(CalculatorError, match=told):
        as_text(calculate(expression))


def test_length_and_depth_are_bounded() -> None:
    with pytest.raises(CalculatorError, match="1,000,001 characters"):
        calculate("1" * 1_000_001)
    deep = MAX_DEPTH + 1
    for expression in ("(" * deep + "1" + ")" * deep, "-" * deep + "1", "2^" * deep + "1"):
        with pytest.raises(CalculatorError, match=r"within each other|too large"):
            calculate(expression)
    assert calculate("+".join("1" * (MAX_CHARACTERS // 2))) == MAX_CHARACTERS // 2
    with pytest.raises(CalculatorError, match="more than 30 digits"):
        as_text(calculate("10^30"))


_numbers = st.decimals(0, 10**6, places=2).map(lambda d: (f"{d:f}", Fraction(d)))


@given(st.recursive(
    _numbers,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda t: (f"({t[0][0]}{t[1]}{t[2][0]})", _apply(t[0][1], t[1], t[2][1]))
    ),
    max_leaves=8,
))  # fmt: skip
def test_trees_of_operations_have_the_value_of_fractions(
    tree: tuple[str, Fraction | None],
) -> None:
    expression, value = tree
    if value is None:
        with pytest.raises(CalculatorError, match="division by zero"):
            calculate(expression)
    else:
        assert calculate(expression) == value


def _apply(a: Fraction | None, sign: str, b: Fraction | None) -> Fraction | None:
    if a is None or b is None or (sign == "/" and b == 0):
        return None
    return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[sign]()
