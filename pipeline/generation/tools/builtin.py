"""The tools that are always there: a calculator, a calendar, a word list."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path

from data.errors import SourceError
from data.small_files import read_file
from data.world.tasks import GERMAN
from pipeline.generation.tools.calculator import as_text, calculate
from pipeline.generation.tools.registry import ToolError, tool

_DAYS = re.compile(r"(?P<count>[+-]?\s*\d{1,6})\s+(?P<unit>day|week|month|year)s?(?P<ago>\s+ago)?")
_NAMED = {"today": 0, "tomorrow": 1, "yesterday": -1}


@tool("calculator")
def calculator(expression: str) -> str:
    """Calculate an expression of numbers, + - * / ^ %, and parentheses."""
    return as_text(calculate(expression))


@tool("calendar")
def calendar(day: str = "today", *, today: str = "2026-01-01") -> str:
    """Tell weekday and date of a day: "today", "tomorrow", "3 weeks ago", "10 days", "2026-12-24".

    `today` is a date, or "clock" for that of the machine, which gives other results every day.
    """
    now = date.today() if today == "clock" else _date(today)
    found = _moved(now, day.strip().lower())
    return f"{found:%A}, {found.day} {found:%B} {found.year}"


def _moved(now: date, day: str) -> date:
    """Return the day that words tell, seen from another one."""
    if day in _NAMED:
        day = f"{_NAMED[day]} days"
    if (match := _DAYS.fullmatch(day.removeprefix("in "))) is None:
        return _date(day)
    count = int(match["count"].replace(" ", "")) * (-1 if match["ago"] else 1)
    try:
        if match["unit"] in ("day", "week"):
            return now + timedelta(days=count * (7 if match["unit"] == "week" else 1))
        month = now.year * 12 + now.month - 1 + count * (12 if match["unit"] == "year" else 1)
        first = date(month // 12, month % 12 + 1, 1)
    except (OverflowError, ValueError):
        raise ToolError(f"{day!r:.40} is beyond the years 1 to 9999") from None
    # A month after the 31st of January is the last of February.
    return first.replace(day=min(now.day, monthrange(first.year, first.month)[1]))


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ToolError(
            f"{text!r:.40} is no day: write it as 2026-12-24, today, 3 days ago or 2 weeks"
        ) from None


@tool("translate")
def translate(text: str, *, words: Path | None = None) -> str:
    """Translate a text into another language, word by word."""
    known = GERMAN if words is None else _word_list(words)
    if (whole := known.get(text.strip().lower())) is not None:
        return whole
    found = re.sub(r"\w+", lambda word: known.get(word[0].lower(), word[0]), text)
    if found == text:
        raise ToolError(f"no word of {text!r:.40} is in the list")
    return found


@lru_cache(maxsize=8)
def _word_list(path: Path) -> dict[str, str]:
    """Return a file of words and what they become, with a tab between, a line each."""
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise SourceError(f"the word list {path} can't be read: {error}") from error
    words = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, tab, other = line.partition("\t")
        if not tab or not word.strip() or not other.strip():
            raise SourceError(f"{path}:{number}: a word, a tab and its translation are a line")
        words[word.strip().lower()] = other.strip()
    return words
