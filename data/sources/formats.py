"""The formats a row can have: told from its columns, and which columns each of them reads.

A row is a mapping of columns to values, from a JSON, Parquet or CSV file or a hub data set;
`data.sources.converting` makes a record of it.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.errors import SourceError, nearest
from data.records import ENDED
from data.sources.asking import (
    ABOUT_COLUMNS,
    ALONE,
    ASKING_COLUMNS,
    FRAME_COLUMNS,
    HISTORY,
    MESSAGE_COLUMNS,
    QUESTION_COLUMNS,
    QUESTIONS,
    Row,
    is_about,
    picked,
)
from data.sources.labelled import LABELLED_COLUMNS
from data.sources.shared import is_transcript
from data.sources.turns import is_nothing, keys_of_answer, last_role, turns_in, unknown_keys
from data.sources.values import RowError, as_list, listed, parsed_object

ANSWER_COLUMNS = ("completion", "response", "answer", "output")
LABEL_COLUMNS = ("label", "kto_tag")
"""Beside an answer: whether it is a good one (true) or one to avoid."""
SCORE_COLUMNS = ("ranks", "rank", "scores")
POLICY_COLUMNS = ("policies", "models", "systems")
SOFT_PAIR, SOFT_RANKING = "probability", "probabilities"
"""Columns of soft labels: share for the chosen one; of each completion over each other one."""
SUBSET = "subset"
"""Column that names the part of a test set that a pair or ranking belongs to, as in RewardBench."""
TEXT_LAYOUTS = ("text", "text_blank_lines", "text_lines")

FORMATS: dict[str, str] = {
    "text": "text; in a text file the whole file, or what <|endoftext|> separates",
    "text_blank_lines": "a text file of documents separated by blank lines",
    "text_lines": "a text file with a document a line",
    "prompt_completion": "prompt + completion, strings or messages",
    "instruction": "instruction or question (+ input) + output, response, answer or completion",
    "messages": "messages (role/content) or conversations (from/value), the assistant's turn last",
    "prompt": "prompt, or messages with the user's turn last",
    "preference": "chosen + rejected (+ prompt), strings or messages",
    "hh": "chosen + rejected as Human:/Assistant: transcripts",
    "rankings": "prompt or messages + completions + ranks (lower is better) or scores (higher is)",
    "labelled": "text, prompt or question (+ response, answer, context or pair) + label",
    "extracts": "question + context + answer (its text, start) or SQuAD's answers",
    "tagged": "tokens + tags (O, B-x, I-x), or text + spans (start, end, label)",
}
"""The last three are never told from columns: fine-tuning reads rows as its head needs them."""

_ANSWERED = frozenset(("id", *ASKING_COLUMNS, *ANSWER_COLUMNS, *LABEL_COLUMNS))
_JUDGED = ("id", "meta", "annotator", SUBSET)
_PAIRED = frozenset((*_JUDGED, *ASKING_COLUMNS, "chosen", "rejected", ENDED, SOFT_PAIR))
_USED: dict[str, frozenset[str]] = {
    "text": frozenset(("id", "text")),
    "prompt_completion": _ANSWERED,
    "instruction": _ANSWERED,
    "messages": frozenset(("id", *ASKING_COLUMNS)),
    "prompt": frozenset(("id", "meta", *ASKING_COLUMNS)),
    "preference": _PAIRED,
    "hh": _PAIRED,
    "rankings": frozenset(
        (
            *_JUDGED,
            *ASKING_COLUMNS,
            "completions",
            ENDED,
            *SCORE_COLUMNS,
            *POLICY_COLUMNS,
            SOFT_RANKING,
        )
    ),
    **{name: frozenset(columns) for name, columns in LABELLED_COLUMNS.items()},
}
_OF_TURNS = ("chosen", "rejected", *ANSWER_COLUMNS, *QUESTIONS, *ABOUT_COLUMNS, HISTORY)
"""Columns that may hold turns."""
_ONE_OF = (ANSWER_COLUMNS, SCORE_COLUMNS, POLICY_COLUMNS, LABEL_COLUMNS)
"""Of each of these the first column that a row has is read, and no other."""


def first(row: Row, names: Sequence[str]) -> Any:
    """Return the value of the first of some columns that a row has, None where it has none."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def check_format(name: str) -> None:
    """Refuse, by a `SourceError`, a format that does not exist."""
    if name != "auto" and name not in FORMATS:
        known = ", ".join(["auto", *FORMATS])
        raise SourceError(f"unknown format '{name}'; known: {known}.{nearest(name, FORMATS)}")


def detect(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """Return the format that a row's columns tell.

    When it has no use for a column that the recipe maps, the mapped columns alone decide.

    Raises:
        SourceError: no format has such columns; lists them and the known formats.
    """
    mapped = {name: row[name] for name in columns or {} if name in row}
    told_format = _detect(row)
    if told_format is None or not _USED[told_format].issuperset(mapped):
        told_format = _detect(mapped) or told_format
    if told_format is None:
        formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        raise SourceError(
            f"can't tell the format from the columns {listed(row) or '(none)'}; name one with "
            f"`format`, or map the columns with `columns: {{ours: theirs}}`. Known formats: "
            f"{formats}"
        )
    return told_format


def _detect(row: Row) -> str | None:
    def has(names: tuple[str, ...]) -> bool:
        return first(row, names) is not None

    if "completions" in row and has(SCORE_COLUMNS):
        return "rankings"
    if "chosen" in row and "rejected" in row:
        both = is_transcript(row["chosen"]) and is_transcript(row["rejected"])
        return "hh" if both else "preference"
    if has(MESSAGE_COLUMNS):
        asking = last_role(first(row, MESSAGE_COLUMNS)) in ("user", "tool")
        return "prompt" if asking else "messages"
    answered = has(ANSWER_COLUMNS)
    if has(QUESTION_COLUMNS) and answered:
        return "instruction"
    asks = isinstance(row.get("prompt"), (str, list, tuple))
    if asks and answered:
        return "prompt_completion"
    alone = [row[name] for name in ALONE if not is_nothing(row.get(name)) and is_about(row[name])]
    if alone and answered:
        return "prompt_completion" if turns_in(alone[0]) else "instruction"
    if "text" in row:
        return "text"
    return "prompt" if asks or has(QUESTION_COLUMNS) or alone else None


def unused(row: Row, name: str, columns: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the columns of a row that hold something and are not read, and such keys of turns.

    Args:
        row: columns under our names.
        name: the format it is read as.
        columns: those that the recipe maps.
    """
    used = _USED["text" if name in TEXT_LAYOUTS else name]
    if name in LABELLED_COLUMNS:
        rest = (name for name, value in row.items() if name not in used and not is_nothing(value))
        yield from (f"column '{name}'" for name in rest)
        return
    only = picked(columns)
    spare = [
        column
        for group in _ONE_OF
        for column in [column for column in group if row.get(column) is not None][1:]
    ]
    in_meta = name == "prompt" and parsed_object(row.get("meta")) is None
    for column, value in row.items():
        if is_nothing(value) or in_meta:
            continue
        passed = bool(only) and column in ASKING_COLUMNS and column not in (*only, *FRAME_COLUMNS)
        passed = passed or (column in ABOUT_COLUMNS and not is_about(value))
        passed = passed or (column in LABEL_COLUMNS and str(value).lower() not in ("true", "false"))
        passed = passed or (column in POLICY_COLUMNS and not isinstance(value, (list, tuple)))
        passed = passed or (column == "meta" and parsed_object(value) is None)
        if column not in used or passed or column in spare:
            yield f"column '{column}'"
    for column in _OF_TURNS if name not in TEXT_LAYOUTS else ():
        yield from {f"key '{key}' of turns": None for key in unknown_keys(row.get(column))}
    for answer in _compared(row, name):
        yield from (f"key '{key}' of compared answers" for key in keys_of_answer(answer))
        if name == "rankings":
            yield from (f"key '{key}' of compared answers" for key in unknown_keys(answer))


def _compared(row: Row, name: str) -> list[Any]:
    """Return the answers of a row that are compared as text."""
    if name == "rankings":
        return as_list(row["completions"], "completions")
    return [row.get("chosen"), row.get("rejected")] if name == "preference" else []


def map_columns(row: Row, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Return a row with columns under our names; the others stay.

    A column is named by its name, by a dotted path into nested values (`instances.0.output`), or
    by a template of columns in braces (`"{context} Question: {prompt}"`).

    Raises:
        RowError: the row lacks a column.
    """
    if not columns:
        return dict(row)
    taken = {ours: _look_up(row, theirs) for ours, theirs in columns.items()}
    moved = set(columns.values()) - set(columns)
    return {**{name: value for name, value in row.items() if name not in moved}, **taken}


def _look_up(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    if "{" in name:
        return re.sub(r"\{([^{}]+)\}", lambda match: _text_of(row, match[1]), name)
    value: Any = row
    for step in name.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, (list, tuple)) and _place(step) < len(value):
            value = value[_place(step)]
        else:
            near = nearest(name[:80], itertools.islice(row, 1000))
            raise RowError(f"no column '{name:.300}'; columns: {listed(row)}.{near}")
    return value


def _place(step: str) -> int:
    return int(step) if step.isdecimal() and len(step) < 10 else sys.maxsize


def _text_of(row: Row, name: str) -> str:
    value = _look_up(row, name.strip())
    return value if isinstance(value, str) else "" if value is None else str(value)
