"""How calls of tools are found in what a model writes, and what is put behind them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from data.text.chat import response_ids
from data.text.inline_calls import CLOSES, GIVES, open_call, tool_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.records import Prompt

REACH = 256
"""Tokens that are looked at for the opening of an inline call; a longer one is text."""
_KEPT = 2**12
"""Results whose tokens are remembered."""


class Asked(NamedTuple):
    """A call as it is written: its tool's name, and arguments by name, or in order.

    One that can't be read has a `problem`, which is its result.
    """

    name: str
    arguments: Mapping[str, Any] | list[str]
    problem: str = ""


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

    def told(self, prompt: Prompt) -> Prompt:
        """Return a prompt as it tells of the tools."""
        ...

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

    def text(self, calls: Sequence[Call]) -> str | None:
        """Return what stands for these tokens in the response's text; None for their own text."""
        ...


def asked_inline(text: str, names: Collection[str]) -> Asked | None:
    """Return the inline call whose result would stand behind a text; None where there is none."""
    call = open_call(text)
    if call is None or tool_of(call) not in names:
        return None
    return Asked(tool_of(call), call["argument"].split("|"))


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

    def told(self, prompt: Prompt) -> Prompt:
        """Return the prompt as it is: a model has learned of the tools, or reads of them in it."""
        return prompt

    def asked(self, ids: Sequence[int], begin: int, *, ended: bool) -> list[Asked]:
        """Return the call that the last token completes."""
        if ended or not self.gives(ids[-1]):
            return []
        written = ids[max(begin, len(ids) - REACH) :]
        found = asked_inline(_text(self.tokenizer, written), self.names)
        return [found] if found else []

    def clean(self, result: str) -> str:
        """Return a result on one line, in which nothing opens or closes a call."""
        line = re.sub(r"<(?=<)", "< ", " ".join(result.split()))
        return re.sub(r">(?=>|$)", "> ", line)

    def answer(self, calls: Sequence[Call]) -> list[int]:
        """Return the tokens of a result and of what closes the call."""
        (call,) = calls
        return self.encoded(call.result + CLOSES)

    def text(self, calls: Sequence[Call]) -> str | None:
        """Return None: the tokens are text of the response."""
        return None


def _shows(tokenizer: PreTrainedTokenizerBase, text: str) -> Callable[[int], bool]:
    """Return what tells whether a token ends with a text."""

    @cache
    def shows(token: int) -> bool:
        return _text(tokenizer, [token]).endswith(text)

    return shows


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    # With the names of special tokens, which are no part of an argument.
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
