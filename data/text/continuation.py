"""What goes on from a plain prompt, as token ids and back, with nothing lost on the way.

A tokeniser of the SentencePiece kind puts a space before the first word of a text and drops it
again when it decodes. What goes on from a prompt is no text of its own: its first space is real,
and where there is none none may be added. So it is tokenised behind another text and decoded behind
its prompt. For tokenisers that do no such thing both are the plain calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], list[int]]
_OPENINGS = ("\n", ".", "a")
"""Texts to stand behind; one that joins what follows to a token of its own is no use."""


def continuation_ids(encode: Encode, prompt: str, text: str) -> list[int]:
    """Return the ids of a text that goes on from a prompt, of one of its own where that is empty.

    `encode` is a tokeniser that adds nothing around a text.
    """
    own = encode(text)
    if not prompt or not text or not _changes_what_comes_first(encode):
        return own
    behind = (_behind(encode, opening, text) for opening in _OPENINGS)
    return next((rest for rest in behind if rest is not None), own)


def continuation_text(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]
) -> str:
    """Return the text of ids that go on from a prompt's, without special tokens."""
    opening = _text(tokenizer, prompt_ids)
    text = _text(tokenizer, [*prompt_ids, *ids])
    # Bytes that are no character may change how those before them are shown.
    return text[len(opening) :] if text.startswith(opening) else _text(tokenizer, ids)


def _changes_what_comes_first(encode: Encode) -> bool:
    behind = (_behind(encode, opening, "a") for opening in _OPENINGS)
    return any(rest not in (None, encode("a")) for rest in behind)


def _behind(encode: Encode, opening: str, text: str) -> list[int] | None:
    """Return a text's ids behind an opening; None where they can't be told apart from its own."""
    first, both = encode(opening), encode(opening + text)
    return both[len(first) :] if first and both[: len(first)] == first else None


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    # Some tokenisers tidy spaces before marks by default, which the text that is scored then lacks.
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)
