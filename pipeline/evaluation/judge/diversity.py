"""How varied responses are among each other, and how much each repeats itself.

Counted on words and punctuation of the text, not on tokens, so that checkpoints with different
tokenizers compare and every figure can be counted again from the text alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+|[^\w\s]")
REPEATED = 3
"""Words of the n-grams in which repetition is counted."""


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case.

    >>> words("Ada's bread, Ada.")
    ['ada', "'", 's', 'bread', ',', 'ada', '.']
    """
    return _WORD.findall(text.lower())


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of n neighbours."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return distinct-n: different n-grams of all texts over their number (Li et al., 2016).

    None when no text is n words long. It falls as more text is counted, so compare it between
    checkpoints that answered the same prompts, and mind their lengths.
    """
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str, n: int = REPEATED) -> float:
    """Return the share of a text's n-grams that stood in it before; 0 for a shorter text.

    Seq-rep-n of Welleck et al. (2020).
    """
    grams = ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
