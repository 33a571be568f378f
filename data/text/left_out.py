"""What a chat template leaves out of the turns it is given, found by rendering with and without."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from data.errors import ModelError
from data.records import REASONING, Message

TOOL_TURNS = "the turns of tools"
NEEDED = ("tool_calls", TOOL_TURNS)
"""Without these a chat makes no sense: an answer would follow from nothing."""
_SYSTEM, _BESIDE_CALLS = "the system's turn", "the text beside calls of tools"
_KEYS = ("tool_calls", "tools", *REASONING, "name")
TRIED = (*_KEYS, TOOL_TURNS, _SYSTEM, _BESIDE_CALLS)


def left_out(
    messages: Sequence[Message],
    render: Callable[[Sequence[Message]], str],
    *,
    tried: Collection[str] = TRIED,
) -> list[str]:
    """Return what of some turns, of those `tried`, is not in the text that they are rendered to.

    Without it the text is the same; `render` may also refuse the turns then, by a `ModelError`.
    """
    without = [(what, turns) for what, turns in _without(messages) if what in tried]
    if not without:
        return []
    rendered = render(messages)
    return [what for what, turns in without if _same(rendered, turns, render)]


def _same(
    rendered: str, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]
) -> bool:
    try:
        return render(messages) == rendered
    except ModelError:  # the template looks at what is missing now
        return False


def _without(messages: Sequence[Message]) -> Iterator[tuple[str, list[Message]]]:
    """Yield each kind of thing that turns hold, and the turns without it."""
    for key in _KEYS:
        if any(key in turn for turn in messages):
            bare = [{name: held for name, held in turn.items() if name != key} for turn in messages]
            yield key, bare  # type: ignore[misc]
    for role, what in (("tool", TOOL_TURNS), ("system", _SYSTEM)):
        others = [turn for turn in messages if turn["role"] != role]
        if len(others) < len(messages):
            yield what, others
    if any("tool_calls" in turn and turn["content"].strip() for turn in messages):
        silent: list[Message] = [
            {**turn, "content": ""} if "tool_calls" in turn else turn for turn in messages
        ]
        yield _BESIDE_CALLS, silent
