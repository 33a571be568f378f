"""Single values of a row: text, numbers, turns of a chat, transcripts, what two answers share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from data.records import ROLES, Message

_ROLE_NAMES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


class RowError(ValueError):
    """One row is malformed."""


class RowDropped(ValueError):
    """One row is well formed, but of no use."""


def as_text(value: Any, column: str) -> str:
    """Return a value that must be text, and text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise RowError(f"column '{column}' holds {_kind(value)}, not text")
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
        raise RowError(f"column '{column}' holds {_kind(value)}, not a list")
    return list(value)


def as_messages(value: Any, *, role: str = "user") -> list[Message]:
    """Return a value as turns: a list of role/content or from/value, or text as one turn.

    Args:
        value: the column's value.
        role: whose turn it is when the value is text.
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [{"role": role, "content": as_text(value, "messages")}]
    turns = as_list(value, "messages")
    if not turns:
        raise RowError("the list of messages is empty")
    return [_turn(turn) for turn in turns]


def _turn(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"a message is {_kind(turn)}, not an object with role and content")
    name = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    role = _ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"a message's role is {name!r}; known: {', '.join(ROLES)}")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RowError("a message holds parts that are no text")
        content = "".join(str(part) for part in parts)
    return {"role": role, "content": as_text(content, "content")}


def is_transcript(value: Any) -> bool:
    """Tell whether a value is a dialogue written as Human: and Assistant: paragraphs."""
    return isinstance(value, str) and value.lstrip("\n").startswith(("Human:", "Assistant:"))


def as_transcript(value: Any, column: str) -> list[Message]:
    """Return the turns of a transcript; paragraphs of one speaker in a row become one turn."""
    text = as_text(value, column)
    if not is_transcript(text):
        raise RowError(f"column '{column}' is no transcript: it does not begin with 'Human:'")
    pieces = _SPEAKER.split("\n\n" + text.lstrip("\n"))[1:]
    turns: list[Message] = []
    for speaker, said in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            joined = f"{turns[-1]['content']}\n\n{said.strip()}".strip()
            turns[-1] = {"role": role, "content": joined}
        else:
            turns.append({"role": role, "content": said.strip()})
    return turns


def shared_turns(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Return the turns two dialogues share, and the two answers that follow them."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise RowError(f"'{name}' ends with the {turns[-1]['role']}'s turn")
    if len(chosen) == 1 or len(rejected) == 1:
        raise RowError("there is no prompt: neither a column nor turns that both share")
    if chosen[:-1] != rejected[:-1]:
        raise RowDropped("chosen and rejected part before the last answer")
    if chosen[-2]["role"] != "user":
        raise RowError(f"the turn before the last answer is the {chosen[-2]['role']}'s")
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return the words that two texts begin with, and what follows in each.

    The prompt ends before a space, so that no word is cut, and neither rest is empty.

    >>> shared_text("The sky is blue.", "The sky is black.")
    ('The sky is', ' blue.', ' black.')
    """
    if chosen == rejected:
        raise RowDropped("chosen and rejected are the same")
    end = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        end += 1
    end = max(0, min(end, len(chosen) - 1, len(rejected) - 1))
    while end > 0 and not (chosen[end].isspace() and rejected[end].isspace()):
        end -= 1
    while end > 0 and chosen[end - 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise RowError("there is no prompt: no column, and chosen and rejected share no beginning")
    return chosen[:end], chosen[end:], rejected[end:]


def _kind(value: Any) -> str:
    names = {type(None): "nothing", bool: "true/false", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else repr(value))
