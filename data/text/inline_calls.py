"""Calls of tools as they stand in a text, inline, as GSM8K's solutions have them.

The model writes up to the `=`, the result and what closes it are put behind it, and the model goes
on:

    call     = "<<" [name ":"] argument {"|" argument} "=" result ">>"   # <<48/2=24>>
    name     = of a tool, the calculator without one                     # <<translate:goat=Ziege>>
    argument = all but < > = | and line breaks, the first without a space at its beginning, in the
               order of the tool's parameters
    result   = all on one line, << and >> apart

A `<<` that is not closed on its line makes what follows on it text, so that no call stands in
another. A call without `=`, or of a name that is no tool of the text's, is text, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

DEFAULT_TOOL = "calculator"
"""The tool of a call that names none."""
OPENS, GIVES, CLOSES = "<<", "=", ">>"
_HEAD = r"<<(?P<head>(?:(?P<name>[A-Za-z_]\w*):)?(?! )(?P<argument>[^<>=\r\n]*)=)"
_OPEN = re.compile(_HEAD)
_CALL = re.compile(_HEAD + r"(?P<result>(?:(?!<<|>>)[^\r\n])*)>>")

Match = re.Match[str]
"""A call: its groups are head, from the opening to the `=`, name, argument and result."""


def tool_of(call: Match) -> str:
    """Return the name of the tool that is called."""
    return call["name"] or DEFAULT_TOOL


def opens_at(text: str, at: int) -> bool:
    """Tell whether the `<<` at a character opens a call: it stands in no other."""
    line = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1
    closed = text.rfind(CLOSES, line, at)
    # `<<<` opens at its first two.
    return text.find(OPENS, line if closed < 0 else closed + len(CLOSES)) == at


def open_call(text: str) -> Match | None:
    """Return the call whose result would stand behind a text; its groups have no result."""
    opening = text.rfind(OPENS)
    match = _OPEN.fullmatch(text, opening) if opening >= 0 else None
    return match if match and opens_at(text, opening) else None


def call_at(text: str, at: int) -> Match | None:
    """Return the call, with its result, that begins at a character."""
    match = _CALL.match(text, at)
    return match if match and opens_at(text, at) else None


def find_calls(text: str) -> Iterator[Match]:
    """Yield the calls of a text with their results."""
    return (match for match in _CALL.finditer(text) if opens_at(text, match.start()))


def split_calls(text: str, names: Collection[str]) -> list[tuple[str, bool]]:
    """Return a text in pieces: what a model writes (True), and what is put behind calls of tools.

    >>> split_calls("48/2 = <<48/2=24>>24 clips", ["calculator"])
    [('48/2 = <<48/2=', True), ('24>>', False), ('24 clips', True)]
    """
    pieces, at = [], 0
    for call in find_calls(text):
        if tool_of(call) in names:
            pieces += [(text[at : call.end("head")], True)]
            pieces += [(text[call.end("head") : call.end()], False)]
            at = call.end()
    return [*pieces, (text[at:], True)] if at < len(text) else pieces
