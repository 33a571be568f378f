"""What is looked up: the words, numbers and signs of a text, all of them.

A tokenizer that drops stop words and single characters, as bm25s's own does, finds no "7 + 3", no
"B" and no "The Who".
"""

from __future__ import annotations

import re
import unicodedata

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han, which are written without spaces: a word each."""
_LONGEST = 64
"""Characters of a word; a longer run is cut into several."""
_WORD = re.compile(
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![,.]?\d)"  # 1,200.50
    r"|\d{1,64}(?:\.\d{1,64})?"
    f"|[{_IDEOGRAPHS}]"
    rf"|[^\W\d_{_IDEOGRAPHS}]{{1,{_LONGEST}}}"
    r"|[+*/=<>^%$€£×÷]|(?<=[\s\d])-(?=[\s\d])"  # a hyphen between letters is no minus
)


def words_of(text: str) -> list[str]:
    """Return the words of a text, lower case and in their usual form; numbers without commas.

    >>> words_of("What is B's share of 1,200 - 7?")
    ['what', 'is', 'b', 's', 'share', 'of', '1200', '-', '7']
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return [word.replace(",", "") for word in _WORD.findall(text.casefold())]


def word_ends(text: str) -> list[int]:
    """Return where each word of a text ends, for cutting it."""
    return [match.end() for match in _WORD.finditer(text)]
