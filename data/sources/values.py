"""Single values of a row: text, numbers, lists, and what becomes of those that JSON can't hold."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping
from typing import Any


class RowError(ValueError):
    """One row is malformed."""


class RowDropped(ValueError):
    """One row is well formed, but of no use."""


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
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"column '{column}' holds {value!r}, not a number")
    return number


def as_list(value: Any, column: str) -> list[Any]:
    """Return a value that must be a list; text that holds a JSON list is taken (CSV files)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError(f"column '{column}' holds text that is no JSON list") from error
    if not isinstance(value, (list, tuple)):
        raise RowError(f"column '{column}' holds {kind_of_value(value)}, not a list")
    return list(value)


def parsed_object(value: Any) -> Mapping[str, Any] | None:
    """Return a value that is an object or the JSON text of one, else None."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
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
    found = plain(key)
    return found if isinstance(found, str) else json.dumps(found)


def _bytes_text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def kind_of_value(value: Any) -> str:
    """Return what a value is, for an error."""
    names = {type(None): "nothing", bool: "true/false", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else repr(value))
