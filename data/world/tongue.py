"""A tongue with a long tail: text that a larger model, or more of it, always tells better.

Which word follows is drawn by what stood before: after the same two words mostly what came there
before, else by the last word alone, else any word, in all three the more often the more it was
said (a hierarchical Pitman-Yor process: Teh 2006, "A hierarchical Bayesian language model"). So
words, pairs and threes have frequencies that fall off by a power, as in natural text, and however
long one reads, new ones come. The corpus of the town is learned in one fall instead, down to the
entropy of its sentences; no law of size and tokens can be read off that.
"""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import product

WORDS = 80
"""Of a document."""
_VOCABULARY = 4000
_DISCOUNTS, _STRENGTHS = (0.6, 0.7, 0.8), (10.0, 2.0, 0.5)
"""Of the words themselves, of those after one word, and after two."""
_ONSETS = (
    "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "br", "gl", "sh",
    "st", "tr",
)  # fmt: skip
_RHYMES = ("a", "e", "i", "o", "u", "ai", "ou", "an", "el", "is", "or", "un")

Context = tuple[int, ...]


class _Urn:
    """What was drawn in a context: each draw's place among the values, and how often each came."""

    __slots__ = ("counts", "draws", "values")

    def __init__(self) -> None:
        self.draws: list[int] = []
        self.counts: list[int] = []
        self.values: list[int] = []


class Tongue:
    """Speaks documents, one after the other; all are of one unknown law, in whatever order.

    Args:
        seed: of words and draws.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"tongue/{seed}")
        syllables = [onset + rhyme for onset, rhyme in product(_ONSETS, _RHYMES)]
        words = dict.fromkeys(syllables)
        while len(words) < _VOCABULARY:
            words["".join(self._rng.choices(syllables, k=self._rng.choice((2, 2, 3))))] = None
        self._words = [*words]
        self._rng.shuffle(self._words)
        self._urns: dict[Context, _Urn] = {}

    def document(self) -> str:
        """Return the next document."""
        context: Context = (-1, -1)
        said = []
        for _ in range(WORDS):
            word = self._draw(context)
            said.append(self._words[word])
            context = (context[1], word)
        return " ".join(said)

    def _draw(self, context: Context) -> int:
        """Draw a word as a customer of the Chinese restaurant process of its context."""
        urn = self._urns.setdefault(context, _Urn())
        discount, strength = _DISCOUNTS[len(context)], _STRENGTHS[len(context)]
        earlier = int(self._rng.random() * (len(urn.draws) + strength))
        if earlier < len(urn.draws):
            place = urn.draws[earlier]
            # Of n earlier draws c were this one: it comes again in (c - discount) of n + strength.
            if self._rng.random() * urn.counts[place] >= discount:
                urn.counts[place] += 1
                urn.draws.append(place)
                return urn.values[place]
        word = self._draw(context[1:]) if context else self._rng.randrange(_VOCABULARY)
        urn.draws.append(len(urn.values))
        urn.values.append(word)
        urn.counts.append(1)
        return word


@lru_cache(maxsize=1)
def write_tongue(seed: int, count: int, *, skip: int = 0) -> tuple[str, ...]:
    """Return documents behind those that are passed over; of one seed all are of one tongue.

    The last ones are kept: a grid of models reads the same again and again.
    """
    tongue = Tongue(seed)
    return tuple(tongue.document() for _ in range(skip + count))[skip:]
