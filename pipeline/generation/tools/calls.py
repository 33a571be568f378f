"""What a call of a tool looks like in a text.

Inline, as GSM8K's solutions have it: the model writes up to the `=`, the result and what closes it
are put behind it, and the model goes on:

    call     = "<<" [name ":"] argument {"|" argument} "=" result ">>"   # <<48/2=24>>
    name     = of a tool, the calculator without one                     # <<translate:goat=Ziege>>
    argument = all but < > = | and line breaks, the first without a space at its beginning, in the
               order of the tool's parameters
    result   = all on one line, >> apart

A `<<` that is not closed on its line makes what follows on it text, so that no call stands in
another. A call without `=`, or of a name that is no tool of the text's, is text, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from data.text.chat import response_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TOOL = "calculator"
"""The tool of an inline call that names none."""
OPENS, GIVES, CLOSES = "<<", "=", ">>"
REACH = 256
"""Tokens that are looked at for the opening of an inline call; a longer one is text."""
_KEPT = 2**12
"""Results whose tokens are remembered."""
_HEAD = re.compile(r"<<(?:(?P<name>[A-Za-z_]\w*):)?(?! )(?P<argument>[^<>=\r\n]*)=")


class Asked(NamedTuple):
    """A call as it is written: its tool's name, and arguments by name, or in order."""

    name: str
    arguments: Mapping[str, Any] | list[str]


@dataclass(frozen=True)
class Call:
    """A call that was executed.

    Attributes:
        name: of the tool.
        arguments: what it was given, by name; as far as that can be told.
        result: what it gave, as it stands in the text; of one that failed, why.
        error: whether it failed.
        cut: whether the result is shorter than what the tool gave.
    """

    name: str
    arguments: Mapping[str, Any]
    result: str
    error: bool = False
    cut: bool = False


class Form(Protocol):
    """How calls and results are written."""

    def asked(self, ids: Sequence[int], begin: int, *, ended: bool) -> list[Asked]:
        """Return the calls that the last token completes.

        Args:
            ids: of the response.
            begin: where what was written since the last result begins.
            ended: whether the last one ends the response.
        """
        ...

    def clean(self, result: str) -> str:
        """Return a result as it can stand in this form."""
        ...

    def answer(self, calls: Sequence[Call]) -> list[int]:
        """Return the tokens that follow calls.

        Raises:
            ControlTokenError: a result spells a control token that can't be kept as text.
        """
        ...


def open_call(text: str, names: Collection[str]) -> Asked | None:
    """Return the inline call whose result would stand behind a text; None where there is none."""
    opening = text.rfind(OPENS)
    match = _HEAD.fullmatch(text, opening) if opening >= 0 else None
    line = max(text.rfind("\n", 0, opening), text.rfind("\r", 0, opening)) + 1
    before = text[line : max(opening, 0)]
    # `<<<` opens at its first two, and what is not closed yet holds no other call.
    if match is None or before.endswith("<") or before.rfind(OPENS) > before.rfind(CLOSES):
        return None
    name = match["name"] or DEFAULT_TOOL
    return Asked(name, match["argument"].split("|")) if name in names else None


def split_calls(text: str, names: Collection[str]) -> list[tuple[str, bool]]:
    """Return a text in pieces: what a model writes (True), and what is put behind inline calls.

    >>> split_calls("48/2 = <<48/2=24>>24 clips", ["calculator"])
    [('48/2 = <<48/2=', True), ('24>>', False), ('24 clips', True)]
    """
    pieces, start = [], 0
    for head in _HEAD.finditer(text):
        if head.end() <= start or open_call(text[start : head.end()], names) is None:
            continue
        line = re.compile(r"[\r\n]|\Z").search(text, head.end())
        close = text.find(CLOSES, head.end(), line.start() if line else None)
        if close < 0:
            continue
        end = close + len(CLOSES)
        pieces += [(text[start : head.end()], True), (text[head.end() : end], False)]
        start = end
    return [*pieces, (text[start:], True)] if start < len(text) else pieces


def result_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens that are put behind a call, of `24>>` and the like.

    Encoded by themselves, so that they are the same wherever the call stands; what they spell of
    control tokens is text.

    Raises:
        ControlTokenError: it can't be kept as text.
    """
    return response_ids(tokenizer, text, behind=GIVES)


class InlineForm:
    """Calls such as `<<48/2=24>>`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: Collection[str]) -> None:
        self.tokenizer, self.names = tokenizer, names
        self.gives = _shows(tokenizer, GIVES)
        # Encoding behind another text takes longer than most tools.
        self.encoded = lru_cache(_KEPT)(partial(result_ids, tokenizer))

    def asked(self, ids: Sequence[int], begin: int, *, ended: bool) -> list[Asked]:
        """Return the call that the last token completes."""
        if ended or not self.gives(ids[-1]):
            return []
        written = ids[max(begin, len(ids) - REACH) :]
        found = open_call(_text(self.tokenizer, written), self.names)
        return [found] if found else []

    def clean(self, result: str) -> str:
        """Return a result on one line, in which nothing opens or closes a call."""
        line = re.sub(r"<(?=<)", "< ", " ".join(result.split()))
        return re.sub(r">(?=>|$)", "> ", line)

    def answer(self, calls: Sequence[Call]) -> list[int]:
        """Return the tokens of a result and of what closes the call."""
        (call,) = calls
        return self.encoded(call.result + CLOSES)


def _shows(tokenizer: PreTrainedTokenizerBase, text: str) -> Callable[[int], bool]:
    """Return what tells whether a token ends with a text."""

    @cache
    def shows(token: int) -> bool:
        return _text(tokenizer, [token]).endswith(text)

    return shows


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    # With the names of special tokens, which are no part of an argument.
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
