"""Single values of a row: text, numbers, lists, and what becomes of those that JSON can't hold."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from data.json_lines import DoubledKeyError, without_twins

MAX_ROW = 1 << 26
"""Bytes (of text characters) that a row may hold; a longer one is malformed, or ends its file."""
MAX_DEPTH = 250
"""Levels of lists and objects in one another that a row may hold."""
_SPACE = " \t\n\r"


class RowError(ValueError):
    """One row is malformed."""


class RowDropped(ValueError):
    """One row is well formed, but of no use."""


class JsonError(ValueError):
    """Text is no JSON, or holds what no row may: the sentence says what.

    Attributes:
        line: where it breaks off, from 1.
        place: character of the text where it does, from 0.
        end: where the value ends that is no row; None where it is no JSON.
        syntax: whether it is no JSON; what is held of it may be cut off.
    """

    def __init__(self, what: str, line: int = 1, place: int = 0, *, syntax: bool = False) -> None:
        super().__init__(what)
        self.line, self.place, self.syntax = line, place, syntax
        self.end: int | None = None


def json_value(text: str) -> Any:
    """Return the value that JSON text from a user holds.

    Raises:
        JsonError: it is none, names a key of an object twice, nests too deep or holds too much.
    """
    require_few(text)
    value, end = json_value_at(text, len(text) - len(text.lstrip(_SPACE)))
    if text[end:].strip(_SPACE):
        raise _told(json.JSONDecodeError("Extra data", text, end))
    return value


def json_value_at(text: str, place: int) -> tuple[Any, int]:
    """Return the value that begins at a character, and where it ends; see `json_value`."""
    try:
        value, end = _DECODER.raw_decode(text, place)
        if text.count("[", place, end) + text.count("{", place, end) > MAX_DEPTH:
            _require_shallow(value)
    except (ValueError, RecursionError) as error:
        problem = _told(error)
        if not problem.syntax and not isinstance(error, RecursionError):
            try:
                _, problem.end = _LENIENT.raw_decode(text, place)
            except ValueError as cut:
                problem = _told(cut)
        raise problem from error
    return value, end


def require_few(text: str) -> None:
    """Refuse, by a `JsonError`, text with more lists and objects than memory is for."""
    most = MAX_ROW // 16  # each takes 200 bytes of memory
    if len(text) > most and text.count("[") + text.count("{") > most:
        raise JsonError(f"more than {most:,} lists and objects")


def _told(error: Exception) -> JsonError:
    if isinstance(error, json.JSONDecodeError):
        return JsonError(str(error), error.lineno, error.pos, syntax=True)
    if isinstance(error, RecursionError):
        return JsonError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(error, JsonError):
        return error
    if isinstance(error, DoubledKeyError):
        return JsonError(str(error))
    return JsonError("a number has more digits than can be read")


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        held = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for inside in held for one in inside if isinstance(one, (dict, list))]
        if not level:
            return
    raise JsonError(f"nested more than {MAX_DEPTH} deep")


_DECODER = json.JSONDecoder(object_pairs_hook=without_twins)
_LENIENT = json.JSONDecoder(parse_int=len)  # which tells the end alone


def listed(names: Iterable[Any], most: int = 300) -> str:
    """Return names for an error, those that fit into so many characters."""
    text = ", ".join(map(str, names))
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def as_text(value: Any, column: str) -> str:
    """Return a value that must be text, and text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise RowError(f"column '{column}' holds {kind_of_value(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"column '{column}' holds half a character (a lone surrogate)") from error
    return value


def as_number(value: Any, column: str) -> float:
    """Return a value that must be a finite number; text that reads as one is taken."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"column '{column}' holds {_shown(value)}, not a number")
    return number


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**60:  # as text it may be too long for Python
        return "a number of more than 60 digits"
    return f"{value!r:.60}"


def as_list(value: Any, column: str) -> list[Any]:
    """Return a value that must be a list; text that holds a JSON list is taken (CSV files)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json_value(value)
        except JsonError as error:
            raise RowError(f"column '{column}' holds text that is no JSON list: {error}") from error
    if not isinstance(value, (list, tuple)):
        raise RowError(f"column '{column}' holds {kind_of_value(value)}, not a list")
    return list(value)


def parsed_object(value: Any) -> Mapping[str, Any] | None:
    """Return a value that is an object or the JSON text of one, else None."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json_value(value)
        except JsonError:
            return None
    return value if isinstance(value, Mapping) else None


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: the one place where what it can't hold becomes readable.

    Dates and times become ISO 8601, decimals and UUIDs their text (a decimal keeps its digits),
    bytes the UTF-8 text that they hold, else base64; numbers that are none become null.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(held) for held in value]
    if isinstance(value, (datetime.date, datetime.time)):
        # Tables tell a time that is missing by one that is none.
        return None if value != value else value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes_text(bytes(value))
    for name in ("tolist", "item"):  # an array or a number of numpy
        if hasattr(value, name):
            return plain(getattr(value, name)())
    return str(value)


def _key(key: Any) -> str:
    name = plain(key)
    return name if isinstance(name, str) else json.dumps(name)


def _bytes_text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def kind_of_value(value: Any) -> str:
    """Return what a value is, for an error."""
    names = {type(None): "nothing", bool: "true/false", list: "a list", dict: "an object"}
    return names.get(
        type(value), "a number" if isinstance(value, (int, float)) else f"{value!r:.60}"
    )
