"""Calculations that stand in a text as marks, as GSM8K has them: `48/2 = <<48/2=24>>24 clips`."""

from __future__ import annotations

from fractions import Fraction

from data.text.inline_calls import DEFAULT_TOOL, find_calls, tool_of
from pipeline.generation.tools.calculator import CalculatorError, calculate


def is_slip(expression: str, result: str) -> bool | None:
    """Tell whether a result is not that of the calculator; None where one of them can't be read.

    A result with decimals may be rounded or cut off there (10/3 = 3.33), a whole number may not.
    """
    try:
        value, given = calculate(expression), calculate(result)
    except CalculatorError:
        return None
    decimals = len(result.strip().partition(".")[2])
    return value != given and (not decimals or abs(value - given) >= Fraction(1, 10**decimals))


def slips(text: str) -> tuple[int, int]:
    """Return how many marked calculations of a text are wrong, and how many can be read."""
    marks = [call for call in find_calls(text) if tool_of(call) == DEFAULT_TOOL]
    judged = [is_slip(mark["argument"], mark["result"]) for mark in marks]
    return judged.count(True), len(judged) - judged.count(None)
