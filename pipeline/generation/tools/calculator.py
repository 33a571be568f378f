"""A calculator for what models write: numbers, + - * / ^ %, parentheses; exact and bounded.

The numbers are fractions, so that 0.1 + 0.2 is 0.3 and 10 / 3 * 3 is 10. Nothing is handed to
Python: an expression is read by the grammar below, and its length, its depth and the size of every
number on the way are bounded, so that it takes well under a millisecond or says why not.

    sum      = product (("+" | "-") product)*
    product  = signed (("*" | "/") signed)*
    signed   = ("+" | "-") signed | power            # -2^2 is -4, as in mathematics
    power    = percent ("^" signed)?                 # 2^3^2 is 2^9; whole exponents
    percent  = value "%"*                            # 5% is 0.05; there is no remainder
    value    = number | "(" sum ")"
    number   = digits, with commas between thousands, a decimal point, a power of ten: 1,200.5e3
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from fractions import Fraction

MAX_CHARACTERS = 500
MAX_DEPTH = 30
"""Of parentheses and signs within each other."""
MAX_BITS = 4096
"""Of a numerator or denominator, some 1,200 digits."""
MAX_DIGITS = 30
"""Of a result; more say nothing to a reader."""
DIGITS = 12
"""A result that no decimal number is exactly is rounded to so many."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d*)?(?:[eE][+-]?\d{1,3}(?!\w))?"
    r"|\.\d+(?:[eE][+-]?\d{1,3}(?!\w))?)|(?P<sign>[-+*/^%()]))\s*",
    re.ASCII,
)
_OTHER_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})


class CalculatorError(ValueError):
    """An expression that has no value, or none within the bounds."""


def calculate(expression: str) -> Fraction:
    """Return the exact value of an expression.

    Raises:
        CalculatorError: it can't be read, divides by zero, or is too large; with the reason.

    >>> calculate("1,200 * (1 - 5%) ^ 2")
    Fraction(1083, 1)
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculatorError(f"{len(expression):,} characters; at most {MAX_CHARACTERS} are read")
    reader = _Reader(_tokens(expression.translate(_OTHER_SIGNS)))
    value = reader.sum(0)
    if reader.next is not None:
        raise CalculatorError(f"an operator is missing before {reader.next!r}")
    return value


def as_text(value: Fraction) -> str:
    """Return a value as a decimal number: exact where it has few digits, else rounded.

    Raises:
        CalculatorError: it has more than `MAX_DIGITS` digits before the point.

    >>> as_text(Fraction(5, 2)), as_text(Fraction(10, 3)), as_text(Fraction(10**6))
    ('2.5', '3.33333333333', '1000000')
    """
    whole = abs(value.numerator) // value.denominator
    if whole >= 10**MAX_DIGITS:
        raise CalculatorError(f"the result has more than {MAX_DIGITS} digits")
    if value.denominator == 1:
        return str(value.numerator)
    context = Context(prec=max(DIGITS, len(str(whole))))
    rounded = context.divide(Decimal(value.numerator), Decimal(value.denominator)).normalize()
    # A tiny number keeps its power of ten: forty zeros say less.
    return str(rounded) if rounded.adjusted() < -DIGITS else f"{rounded:f}"


def _tokens(expression: str) -> list[str]:
    tokens, place = [], 0
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None:
            rest = expression[place:].strip()
            if not rest:
                break
            raise CalculatorError(f"{rest[:10]!r} is neither a number nor one of + - * / ^ % ( )")
        tokens.append(match["number"] or match["sign"])
        place = match.end()
    if not tokens:
        raise CalculatorError("there is nothing to calculate")
    return tokens


class _Reader:
    """Reads tokens by the grammar, one method a rule, and calculates as it goes."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place = tokens, 0

    @property
    def next(self) -> str | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self, *signs: str) -> str | None:
        """Return the next token if it is one of these, and go on behind it."""
        if self.next not in signs:
            return None
        self.place += 1
        return self.tokens[self.place - 1]

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+", "-"):
            other = self.product(depth)
            value = _bounded(value + other if sign == "+" else value - other)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while sign := self.take("*", "/"):
            other = self.signed(depth)
            if sign == "/" and other == 0:
                raise CalculatorError("division by zero")
            value = _bounded(value * other if sign == "*" else value / other)
        return value

    def signed(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise CalculatorError(f"more than {MAX_DEPTH} parentheses or signs within each other")
        if sign := self.take("+", "-"):
            value = self.signed(depth + 1)
            return -value if sign == "-" else value
        value = self.percent(depth)
        return _power(value, self.signed(depth + 1)) if self.take("^") else value

    def percent(self, depth: int) -> Fraction:
        value = self.value(depth)
        while self.take("%"):
            value = _bounded(value / 100)
        return value

    def value(self, depth: int) -> Fraction:
        token = self.next
        self.place += 1
        if token == "(":
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise CalculatorError("a parenthesis is not closed")
            return value
        if token is None:
            raise CalculatorError("a number is missing at the end")
        if not token[0].isdigit() and token[0] != ".":
            raise CalculatorError(f"a number is missing before {token!r}")
        return _bounded(Fraction(token.replace(",", "")))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise CalculatorError("an exponent is no whole number")
    times = exponent.numerator
    if base == 0 and times < 0:
        raise CalculatorError("division by zero")
    # Known before it is calculated: 9^9^9 has 370 million digits.
    if _bits(base) * abs(times) > MAX_BITS and abs(base) != 1 and base != 0:
        raise CalculatorError("the result of a power is too large")
    if abs(base) == 1:
        times %= 2  # (-1)^n, however large n is
    return Fraction(base**times)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise CalculatorError("a number on the way is too large")
    return value
