"""What a chat template leaves out of the turns it is given, found by rendering with and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.errors import ModelError
from data.records import REASONING, Message

_TRIED = ("tool_calls", "tools", *REASONING)
TOOL_TURNS = "the turns of tools"
NEEDED = ("tool_calls", TOOL_TURNS)
"""Without these a chat makes no sense: an answer would follow from nothing."""


def left_out(messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> list[str]:
    """Return what of some turns leaves the rendered text as it is, and so is not in it.

    Args:
        messages: the turns.
        render: gives their text; it may refuse turns with a `ModelError`.
    """
    kinds = [key for key in _TRIED if any(key in turn for turn in messages)]
    tools_speak = any(turn["role"] == "tool" for turn in messages)
    if not kinds and not tools_speak:
        return []
    whole = render(messages)
    found = [key for key in kinds if _same(whole, _without(messages, key), render)]
    others = [turn for turn in messages if turn["role"] != "tool"]
    if tools_speak and _same(whole, others, render):
        found.append(TOOL_TURNS)
    return found


def _same(
    whole: str, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]
) -> bool:
    try:
        return render(messages) == whole
    except ModelError:  # the template looks at what is missing now
        return False


def _without(messages: Sequence[Message], key: str) -> list[Message]:
    return [
        {name: held for name, held in turn.items() if name != key}  # type: ignore[misc]
        for turn in messages
    ]
