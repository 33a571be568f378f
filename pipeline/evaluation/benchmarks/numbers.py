"""Reads the number that an answer gives: as lm-eval does, strictly or flexibly, or as a person.

lm-eval's two readings of GSM8K are compared as text; the same number written otherwise is wrong to
them: `1,200.00`, `1.2e3`, `3/4`, `-$5`. `read_number` gives the value.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")
"""What lm-eval's task takes out of both texts, one after the other."""

_MARKS = (
    re.compile(r"####(?P<rest>[^\n]*)"),
    re.compile(r"\\boxed\{(?P<rest>[^\n]*)"),
    re.compile(r"\banswer\s*(?:is|are|was|:|=|would be)(?=(?P<rest>[^\n]*))", re.IGNORECASE),
)
"""What says that the answer comes now; the surest first."""
_DIGITS = r"\d{1,3}(?:,\d{3})+(?![\d,])|\d+"
_NUMBER = re.compile(
    rf"""
    (?<![A-Za-z_\d.])                                   # no part of a name such as x2 or v1.2
    (?P<minus>(?<![\w)%\]}}])-(?:(?<![\d)%]\s-)\s)?)?  # a sign, where nothing is taken off
    (?:[$£€¥]\s?)?(?P<minus_inside>-)?
    (?:
        (?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s?/\s?(?P<under>\d+)(?![\d/.])  # 3/4, 1 1/2
      | (?P<decimal>(?:{_DIGITS})(?:\.\d+)?|\.\d+)
        (?:[eE](?P<power>[+-]?\d{{1,3}})(?!\w))?        # 1.2e3
        (?:\s?(?:[×x*]|\\times)\s?10\^\{{?(?P<tens>-?\d{{1,3}})\}}?)?  # 1.2 x 10^3
        (?:\s(?P<word>hundred|thousand|million|billion)\b)?
    )
    """,
    re.VERBOSE,
)
_CALL = re.compile(r"<<[^<>\r\n]*=(?P<result>[^<>=\r\n]*)>>(?P<shown>(?=[-$]?\.?\d))?")
"""A tool's call, and whether a number stands right behind it, as a rule its result once more."""
_WORDS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}


def read_strict(text: str) -> str | None:
    """Return what stands behind the first `#### `, as lm-eval's strict-match reads it."""
    match = _STRICT.search(text)
    return None if match is None else _compared(match[1])


def read_flexible(text: str) -> str | None:
    """Return the last thing that looks like a number, as lm-eval's flexible-extract reads it."""
    matches = _FLEXIBLE.findall(text)
    return _compared(next(part for part in matches[-1] if part).strip()) if matches else None


def _compared(text: str) -> str:
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


def read_number(text: str) -> Fraction | None:
    r"""Return the number that an answer gives, as a person reads it; None where it gives none.

    It stands behind `####`, in the last `\boxed{}`, behind the last "answer is" or "answer:", or
    is the last number of the text. Signs, currencies, commas between thousands, powers of ten,
    fractions, mixed numbers and a full stop behind are read; units and per cent are left out. Of a
    call of a tool the result alone is read.

    >>> read_number("That makes $1,200.00 in all."), read_number("#### -1 1/2 miles")
    (Fraction(1200, 1), Fraction(-3, 2))
    """
    text = _plain(text)
    for place, mark in enumerate(_MARKS):
        matches = list(mark.finditer(text))
        for match in matches[:1] if place == 0 else matches[::-1]:
            number = _NUMBER.search(match["rest"])
            if number is not None:
                return _value(number)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _plain(text: str) -> str:
    """Return a text with its signs and fractions as ASCII, and without marks of type."""
    text = _CALL.sub(lambda call: "" if call["shown"] is not None else call["result"], text)
    text = re.sub(r"[−–]", "-", text)
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r" \1/\2", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    return re.sub(r"\*\*|__|\\[$%!,;]|\\text", "", text.replace("⁄", "/"))


def _value(number: re.Match[str]) -> Fraction:
    if number["over"] is not None:
        under = int(number["under"]) or 1
        value = int(number["whole"] or 0) + Fraction(int(number["over"]), under)
    else:
        power = int(number["power"] or 0) + int(number["tens"] or 0)
        value = Fraction(number["decimal"].replace(",", "")) * Fraction(10) ** power
        value *= _WORDS.get(number["word"] or "", 1)
    return -value if number["minus"] or number["minus_inside"] else value
