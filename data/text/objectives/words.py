"""Which tokens are one word, told from the tokens themselves: of any kind of tokenizer.

A word is a run of letters, of digits, or of other signs, with the space before it. Byte-level and
Metaspace vocabularies write that space into a token, WordPiece marks what goes on in a word, and
some BPE what ends one; where a token ends in a letter and the next begins with a sign, a word ends
too. Offsets into the text tell none of this: where they hold the space, no gap is between words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data.text.objectives.spans import Mask
from data.text.packing import Ids
from data.text.tokenizer import byte_alphabet, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LETTER, _DIGIT, _SIGN, _SPACE = 1, 2, 3, 4
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SENTENCE_END = re.compile(r"""[.!?。！？]["'”’)\]]*\s*$|\n\s*$""")


@dataclass(frozen=True)
class TokenKinds:
    """What each id of a vocabulary is as a part of words; arrays have its length.

    Attributes:
        opens: begins a word, whatever stands before it.
        closes: ends a word, whatever comes next.
        first: kind of its first sign.
        last: kind of its last sign.
        special: is a control token, no text; ids that the vocabulary lacks count as such.
        ends_sentence: ends in a full stop, its like, or a new line.
    """

    opens: Mask
    closes: Mask
    first: npt.NDArray[np.int8]
    last: npt.NDArray[np.int8]
    special: Mask
    ends_sentence: Mask


def token_kinds(tokenizer: PreTrainedTokenizerBase) -> TokenKinds:
    """Read off a vocabulary what its tokens are as parts of words."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    spell = _speller(tokenizer)
    size = max(vocabulary.values()) + 1
    kinds = TokenKinds(
        opens=np.zeros(size, dtype=np.bool_),
        closes=np.zeros(size, dtype=np.bool_),
        first=np.zeros(size, dtype=np.int8),
        last=np.zeros(size, dtype=np.int8),
        special=np.ones(size, dtype=np.bool_),
        ends_sentence=np.zeros(size, dtype=np.bool_),
    )
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    for name, number in vocabulary.items():
        if number in special:
            continue
        text, opens, closes = spell(name)
        kinds.special[number] = False
        kinds.opens[number] = opens or not text or text[0].isspace()
        kinds.closes[number] = closes
        kinds.first[number], kinds.last[number] = _kind(text[:1]), _kind(text[-1:])
        kinds.ends_sentence[number] = _SENTENCE_END.search(text) is not None
    return kinds


def word_numbers(ids_T: Ids, kinds: TokenKinds) -> Ids:
    """Return the number of the word that each token of a row is part of, counted from 0.

    Control tokens are words of their own.
    """
    before_T, after_T = ids_T[:-1], ids_T[1:]
    starts_T = np.ones(len(ids_T), dtype=np.bool_)
    # The space before a word may be a token of its own: the word has begun with it.
    changes_T = (kinds.last[before_T] != kinds.first[after_T]) & (kinds.last[before_T] != _SPACE)
    apart_T = kinds.special[before_T] | kinds.special[after_T] | kinds.closes[before_T]
    starts_T[1:] = kinds.opens[after_T] | changes_T | apart_T
    return np.cumsum(starts_T) - 1


def _kind(sign: str) -> int:
    if sign.isspace():
        return _SPACE
    if sign.isdigit():
        return _DIGIT
    # Bytes that are no whole sign are parts of a letter, as most signs beyond ASCII are.
    return _LETTER if sign.isalpha() or "\udc80" <= sign <= "\udcff" or _is_mark(sign) else _SIGN


def _is_mark(sign: str) -> bool:
    import unicodedata

    return bool(sign) and unicodedata.category(sign).startswith("M")


def _speller(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return what tells of a token's name its text, and whether it opens or ends a word."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    model = getattr(backend, "model", None)
    goes_on = getattr(model, "continuing_subword_prefix", None) or ""
    ends = getattr(model, "end_of_word_suffix", None) or ""
    bytes_of = {sign: number for number, sign in enumerate(byte_alphabet())}
    byte_level = "ByteLevel" in str(getattr(backend, "decoder", ""))
    pieces = type(model).__name__ == "WordPiece"

    def spell(name: str) -> tuple[str, bool, bool]:
        if byte_level and all(sign in bytes_of for sign in name):
            raw = bytes(bytes_of[sign] for sign in name)
            return raw.decode("utf-8", "surrogateescape"), False, False
        byte = _BYTE.fullmatch(name)
        if byte is not None:
            return bytes([int(byte[1], 16)]).decode("utf-8", "surrogateescape"), False, False
        going_on = bool(goes_on) and name.startswith(goes_on)
        ending = bool(ends) and name.endswith(ends)
        text = name.removeprefix(goes_on) if going_on else name
        text = text.removesuffix(ends) if ending else text
        return text.replace("▁", " "), pieces and not going_on, ending

    return spell
