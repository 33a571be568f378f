"""Rows with labels as records: classes of texts, answers in a text, and what stands where in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from data.records import Extract, Labelled, Tagged, turn_text
from data.sources.turns import as_messages, is_nothing, turns_in
from data.sources.values import (
    RowDropped,
    RowError,
    as_list,
    as_text,
    kind_of_value,
    listed,
    parsed_object,
)

Row = Mapping[str, Any]

TEXT_COLUMNS = ("text", "prompt", "question")
PAIR_COLUMNS = ("pair", "response", "answer", "context")
"""The second of two texts that have a label together."""
_STARTS = ("answer_start", "start")
LABELLED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "labelled": ("id", *TEXT_COLUMNS, *PAIR_COLUMNS, "label"),
    "extracts": ("id", "question", "context", "answer", "answers", *_STARTS),
    "tagged": ("id", "tokens", "tags", "text", "spans"),
}
"""Columns that each format reads."""


def labelled(row: Row, identity: str) -> Labelled:
    """Return a text, or two, with its class."""
    named = [name for name in TEXT_COLUMNS if not is_nothing(row.get(name))]
    if not named:
        raise RowDropped("the text is empty") if _has(row, TEXT_COLUMNS) else _lacks(row, "text")
    second = [name for name in PAIR_COLUMNS if not is_nothing(row.get(name))]
    pair = _plain_text(row, second[0]) if second else ""
    return Labelled(_plain_text(row, named[0]), _label(row), pair, identity)


def _plain_text(row: Row, name: str) -> str:
    value = row[name]
    if turns_in(value) is not None:
        return "\n\n".join(turn_text(turn) for turn in as_messages(value))
    return as_text(value, name)


def _label(row: Row) -> str:
    if "label" not in row:
        raise _lacks(row, "label")
    value = row["label"]
    if is_nothing(value):
        raise RowDropped("it has no label")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))  # as tables write whole numbers where one is missing
    if not isinstance(value, (str, int, float)):
        raise RowError(f"column 'label' holds {kind_of_value(value)}, not one label")
    return str(value).strip()


def extract(row: Row, identity: str) -> Extract:
    """Return a question with the places of its context that answer it, SQuAD's columns or plain."""
    question, context = (_needed_text(row, name) for name in ("question", "context"))
    told = parsed_object(row.get("answers"))
    if told is not None:
        texts = as_list(told.get("text", ()), "answers.text")
        starts = as_list(told.get("answer_start", ()), "answers.answer_start")
        if starts and len(starts) != len(texts):
            raise RowError(f"answers hold {len(texts)} texts and {len(starts)} answer_start")
    else:
        if is_nothing(row.get("answer")):
            if not _has(row, ("answer", "answers")):
                raise _lacks(row, "answer")
            raise RowDropped("it has no answer")
        texts = [row["answer"]]
        starts = [row[name] for name in _STARTS if not is_nothing(row.get(name))][:1]
    if not texts:
        raise RowDropped("its context does not answer the question")
    pairs = zip(texts, starts or [None] * len(texts), strict=True)
    answers = [_placed(as_text(text, "answer"), start, context) for text, start in pairs]
    return Extract(question, context, answers, identity)


def _placed(text: str, start: Any, context: str) -> tuple[int, str]:
    """Return an answer with the character where it begins; the first such place where none is told.

    White space around it is no part of it.
    """
    if not text.strip():
        raise RowDropped("its answer is empty")
    if start is None:
        start = context.find(text.strip())
        if start < 0:
            raise RowDropped("its answer does not stand in its context")
        return start, text.strip()
    if isinstance(start, bool) or not isinstance(start, (int, float)) or start != int(start):
        raise RowError(f"the start of the answer is {start!r:.60}, not the number of a character")
    place = int(start)
    if context[place : place + len(text)] != text or place < 0:
        raise RowError(
            f"the answer {text!r:.60} does not stand at character {place} of its context"
        )
    return place + len(text) - len(text.lstrip()), text.strip()


def tagged(row: Row, identity: str) -> Tagged:
    """Return a text with its entities, given as characters or as a tag of each token."""
    if is_nothing(row.get("tokens")):
        text = _needed_text(row, "text")
        if row.get("spans") is None:
            raise _lacks(row, "spans")
        spans = [_span(value, text) for value in as_list(row["spans"], "spans")]
        return Tagged(text, _apart(spans), identity)
    tokens = [as_text(token, "tokens") for token in as_list(row["tokens"], "tokens")]
    if row.get("tags") is None:
        raise _lacks(row, "tags")
    tags = as_list(row["tags"], "tags")
    if len(tags) != len(tokens):
        raise RowError(f"{len(tokens)} tokens but {len(tags)} tags")
    starts, place = [], 0
    for token in tokens:
        starts.append(place)
        place += len(token) + 1
    places = [(start, start + len(token)) for start, token in zip(starts, tokens, strict=True)]
    return Tagged(" ".join(tokens), from_tags(zip(places, tags, strict=True)), identity)


def from_tags(tagged_places: Iterable[tuple[tuple[int, int], Any]]) -> list[tuple[int, int, str]]:
    """Return the entities of places with tags O, B-x and I-x; an I-x after another opens one.

    Raises:
        RowError: a tag is of another kind.
    """
    spans: list[tuple[int, int, str]] = []
    open_label = None
    for (start, stop), tag in tagged_places:
        kind, _, label = str(tag).partition("-")
        if tag == "O":
            open_label = None
        elif kind not in ("B", "I") or not label:
            raise RowError(f"the tag {tag!r:.60} is none of O, B-label and I-label")
        elif kind == "I" and label == open_label:
            spans[-1] = (spans[-1][0], stop, label)
        else:
            spans.append((start, stop, label))
            open_label = label
    return spans


def _span(value: Any, text: str) -> tuple[int, int, str]:
    entry = parsed_object(value)
    if entry is None:
        raise RowError(f"a span is {kind_of_value(value)}, not an object of start, end and label")
    start, stop, label = (entry.get(name) for name in ("start", "end", "label"))
    if type(start) is not int or type(stop) is not int or not isinstance(label, str) or not label:
        raise RowError(f"the span {value!r:.80} has no start, end (characters) and label (text)")
    if not 0 <= start < stop <= len(text):
        raise RowError(f"the span {start} to {stop} lies outside of its {len(text)} characters")
    return start, stop, label


def _apart(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    spans = sorted(spans)
    for before, after in pairwise(spans):
        if after[0] < before[1]:
            raise RowError(
                f"the spans {before[0]} to {before[1]} and {after[0]} to {after[1]} overlap; a "
                "token has one tag"
            )
    return spans


def _needed_text(row: Row, name: str) -> str:
    if name not in row:
        raise _lacks(row, name)
    if is_nothing(row[name]):
        raise RowDropped(f"the {name} is empty")
    return as_text(row[name], name)


def _has(row: Row, names: Iterable[str]) -> bool:
    return any(name in row for name in names)


def _lacks(row: Row, name: str) -> RowError:
    return RowError(f"no column '{name}'; columns: {listed(row)}")
