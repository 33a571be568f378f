"""The turns of a chat as rows hold them, and what else than text a turn carries.

Beside role and content a turn keeps what a chat template may show: calls of tools, reasoning,
names. Keys that hold nothing count as absent, since tables fill them in. Older and other spellings
become ours: roles of ShareGPT, `function_call`, arguments of a call as JSON text.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from data.records import REASONING, ROLES, Message
from data.sources.values import (
    JsonError,
    RowError,
    as_list,
    as_text,
    json_value,
    kind_of_value,
    listed,
)

MAX_LITERAL = 1 << 22
"""Characters of text written by Python that are read: they take much more memory than JSON."""
CARRIED = ("tool_calls", *REASONING, "name", "tool_call_id")
"""Keys of a turn that go to the chat template as they are."""
WEIGHTS = ("weight", "train", "loss", "train_on_turn")
"""Keys that say whether a turn of the assistant is learned."""
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
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
}
_TURNS_AS_TEXT = re.compile(r"\s*\[\s*\{\s*['\"](role|from|content|value)['\"]\s*:")
_CALLING = ("function_call", "tool_call")
"""Roles of a turn whose text is a call, or a list of them, as JSON."""
_KNOWN = frozenset(
    ("role", "from", "content", "value", "function_call", "tools", *CARRIED, *WEIGHTS)
)


def is_nothing(value: Any) -> bool:
    """Tell whether a value stands for one that is missing."""
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def turns_in(value: Any) -> list[Any] | None:
    """Return the turns that a value holds as a list, an object or their text; else None.

    Text is a list of turns only if all of it reads as one: an answer may begin with a bracket.
    """
    if isinstance(value, Mapping):
        return [value] if _is_turn(value) else None
    if isinstance(value, (list, tuple)):
        return list(value) if value and all(_is_turn(turn) for turn in value) else None
    if isinstance(value, str) and value.lstrip().startswith(("[{", "[ {", "[\n")):
        turns = _parsed(value)
        if turns is None and _TURNS_AS_TEXT.match(value):
            raise RowError(f"turns stand as text that is no JSON list: {value.strip()[:40]!r} ...")
        return turns_in(turns) if isinstance(turns, list) else None
    return None


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(value.get(name), str) for name in ("role", "from")
    )


def _parsed(text: str) -> Any:
    """Return what text says as JSON or, from tables written by Python, as a literal; else None."""
    try:
        return json_value(text)
    except JsonError as error:
        if not error.syntax or len(text) > MAX_LITERAL:
            return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def as_messages(value: Any, *, role: str = "user") -> list[Message]:
    """Return a value as turns: a list of role/content or from/value, or text as one turn.

    Args:
        value: the column's value.
        role: whose turn it is when the value is text.
    """
    turns = turns_in(value)
    if turns is None and isinstance(value, str):
        return [{"role": role, "content": as_text(value, "messages")}]
    if turns is None:
        turns = as_list(value, "messages")
    if not turns:
        raise RowError("the list of messages is empty")
    return [_turn(turn) for turn in turns]


def last_role(value: Any) -> str | None:
    """Return whose turn the last one is, None where a value holds no turns that we know."""
    turns = turns_in(value)
    if not turns:
        return None
    try:
        return _role(turns[-1])
    except RowError:
        return None


def _speaker(turn: Mapping[str, Any]) -> Any:
    """Return who speaks as the turn says it; of the two keys a table may leave one null."""
    name = turn.get("role")
    return turn.get("from") if name is None else name


def _role(turn: Mapping[str, Any]) -> str:
    name = _speaker(turn)
    known = name.lower() if isinstance(name, str) else ""
    if known in _CALLING:
        return "assistant"
    role = _ROLE_NAMES.get(known)
    if name is None:
        raise RowError(f"a message has neither role nor from; its keys: {listed(turn)}")
    if role is None:
        raise RowError(f"a message's role is {name!r:.60}; known: {', '.join(ROLES)}")
    return role


def _turn(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"a message is {kind_of_value(turn)}, not an object with role and content")
    role = _role(turn)
    content = turn.get("content")
    content = turn.get("value") if content is None else content
    calls = _calls(turn.get("tool_calls"), turn.get("function_call"))
    if str(_speaker(turn)).lower() in _CALLING:
        calls, content = _calls(content, None), ""
    if content is None and calls:
        content = ""
    made: Message = {"role": role, "content": as_text(_joined(content), "content")}
    for key in CARRIED[1:]:
        if not is_nothing(turn.get(key)):
            made[key] = as_text(turn[key], key)  # type: ignore[literal-required]
    if calls:
        made["tool_calls"] = calls
    if not is_nothing(turn.get("tools")):
        made["tools"] = as_tools(turn["tools"])
    if role == "assistant" and not _learned(turn):
        made["weight"] = 0
    return made


def _joined(content: Any) -> Any:
    """Return content in parts as one text."""
    if not isinstance(content, (list, tuple)):
        return content
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("a message holds parts that are no text")
    return "".join(str(part) for part in parts)


def _learned(turn: Mapping[str, Any]) -> bool:
    for key in WEIGHTS:
        weight = turn.get(key)
        if weight is None:
            continue
        if weight not in (0, 1):
            raise RowError(f"a turn's {key} is {weight!r:.60}; turns are learned (1) or not (0)")
        return bool(weight)
    return True


def _calls(tool_calls: Any, function_call: Any) -> list[dict[str, Any]]:
    """Return calls with their arguments as objects where they are JSON text of one."""
    if isinstance(tool_calls, str) and tool_calls:
        tool_calls = _json(tool_calls, "tool_calls")
    if is_nothing(tool_calls):
        tool_calls = [] if is_nothing(function_call) else [_as_call(function_call)]
    if isinstance(tool_calls, Mapping):
        tool_calls = [tool_calls]
    if not isinstance(tool_calls, (list, tuple)):
        raise RowError(f"tool_calls are {kind_of_value(tool_calls)}, not a list")
    return [_call(_as_call(call)) for call in tool_calls]


def _as_call(call: Any) -> dict[str, Any]:
    if isinstance(call, str):
        call = _json(call, "tool_calls")
    if not isinstance(call, Mapping):
        raise RowError(f"a call of a tool is {kind_of_value(call)}, not an object")
    if "function" in call:
        return dict(call)
    return {"type": "function", "function": dict(call)}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = without_nulls(call)
    function = made.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("a call of a tool does not name its function")
    given = function.get("arguments")
    if isinstance(given, str):
        parsed = _parsed(given) if given.lstrip().startswith("{") else None
        function["arguments"] = parsed if isinstance(parsed, dict) else given
    return made


def as_tools(value: Any) -> list[dict[str, Any]]:
    """Return the tools that a chat may call; JSON text of the list is taken."""
    tools = _json(value, "tools") if isinstance(value, str) else value
    tools = [tools] if isinstance(tools, Mapping) else tools
    if isinstance(tools, (list, tuple)):
        tools = [_json(tool, "tools") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, (list, tuple)) or not all(isinstance(one, Mapping) for one in tools):
        raise RowError("column 'tools' holds no list of objects")
    described = [without_nulls(tool) for tool in tools]
    return [
        tool if "function" in tool or "type" in tool else {"type": "function", "function": tool}
        for tool in described
    ]


def _json(text: str, column: str) -> Any:
    try:
        return json_value(text)
    except JsonError as error:
        raise RowError(f"'{column}' holds text that is no JSON: {error}") from error


def without_nulls(value: Any) -> Any:
    """Return a value without keys that hold nothing: tables give each row the keys of all."""
    if isinstance(value, Mapping):
        return {key: without_nulls(held) for key, held in value.items() if held is not None}
    return [without_nulls(held) for held in value] if isinstance(value, (list, tuple)) else value


def unknown_keys(value: Any) -> Iterator[str]:
    """Yield the keys of a value's turns that hold something and that nothing reads."""
    for turn in _known_turns(value):
        for key, held in turn.items():
            if not is_nothing(held) and (key not in _KNOWN or _passed_over(turn, key)):
                yield str(key)


def keys_of_answer(value: Any) -> Iterator[str]:
    """Yield what an answer carries beside its text: where texts are compared nothing reads it."""
    for turn in _known_turns(value)[-1:]:
        yield from (key for key in CARRIED if not is_nothing(turn.get(key)))


def _known_turns(value: Any) -> list[Any]:
    try:
        return turns_in(value) or []
    except RowError:  # a column that nothing reads
        return []


def _passed_over(turn: Mapping[str, Any], key: str) -> bool:
    """Tell whether a key that we know says something that another one, which is read, does not."""
    held = turn[key]
    if key in ("from", "value"):
        read = turn.get("role" if key == "from" else "content")
        return read is not None and read != held
    if key == "function_call":
        read = _calls(turn.get("tool_calls"), None)
        return bool(read) and _calls(None, held)[0]["function"] not in [
            call["function"] for call in read
        ]
    return key in WEIGHTS and bool(held) and _role(turn) != "assistant"
