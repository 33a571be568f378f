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
_MOST_OF_CHARACTER = 4
"""Tokens that a character may take: bytes of UTF-8."""
_OPENINGS = ("\n", ".", "a")
"""Texts to stand behind; one that joins what follows to a token of its own is no use."""


def continuation_ids(encode: Encode, prompt: str, text: str) -> list[int]:
    """Return the ids of a text that goes on from a prompt, of one of its own where that is empty.

    `encode` is a tokeniser that adds nothing around a text.
    """
    opening = opening_for(encode, text) if prompt else ""
    return encode(opening + text)[len(encode(opening)) if opening else 0 :]


def opening_for(encode: Encode, text: str) -> str:
    """Return what a text is encoded behind where it goes on from another; "" where it needs none.

    The opening's own ids come first then, and are left out.
    """
    if not text or not _changes_what_comes_first(encode):
        return ""
    behind = (opening for opening in _OPENINGS if _behind(encode, opening, text) is not None)
    return next(behind, "")


def continuation_text(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]
) -> str:
    """Return the text of ids that go on from a prompt's, without special tokens."""
    opening = _text(tokenizer, prompt_ids)
    text = _text(tokenizer, [*prompt_ids, *ids])
    # Bytes that are no character may change how those before them are shown.
    return text[len(opening) :] if text.startswith(opening) else _text(tokenizer, ids)


def token_texts(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]
) -> list[str]:
    """Return what each of the ids that go on from a prompt's adds to the text, special ones too.

    A character of several tokens stands at the last of them; the others add nothing.
    """
    known, done, texts = [*prompt_ids, *ids], len(prompt_ids), []
    # Read behind a few tokens before it alone, so that the time grows with the length, no faster.
    start = max(0, done - _MOST_OF_CHARACTER)
    for end in range(done + 1, len(known) + 1):
        before, now = (_text(tokenizer, known[start:stop], special=True) for stop in (done, end))
        last = end - done >= _MOST_OF_CHARACTER or end == len(known)
        whole = last or not now.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append(now[len(before) :] if whole else "")
        if whole:
            start, done = done, end
    return texts


def _changes_what_comes_first(encode: Encode) -> bool:
    behind = (_behind(encode, opening, "a") for opening in _OPENINGS)
    return any(rest not in (None, encode("a")) for rest in behind)


def _behind(encode: Encode, opening: str, text: str) -> list[int] | None:
    """Return a text's ids behind an opening; None where they can't be told apart from its own."""
    first, both = encode(opening), encode(opening + text)
    return both[len(first) :] if first and both[: len(first)] == first else None


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool = False) -> str:
    # Some tokenisers tidy spaces before marks by default, which the text that is scored then lacks.
    text = tokenizer.decode(
        list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
    )
    return str(text)
