"""How the gold annotator reads an answer: who and what is named in it, and in which manner.

Part of the judge; only `data.world.annotator` uses it.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property, lru_cache
from itertools import pairwise

from data.world import World
from data.world.statements import BARE, PAIRS, STATEMENTS
from data.world.town import NAMES, VALUES, plural

CONDESCENDING = (
    "obviously", "silly", "slowly", "closely", "child", "forget", "hard", "poor", "slow",
    "even you", "keep up", "for once", "simple enough", "listen", "stupid", "fool", "idiot",
    "dumb", "dummy", "slowcoach", "clever enough", "dear me", "bless you",
)  # fmt: skip
"""Words that occur in no plain answer; one is enough."""

LONG_WINDED = (
    "considered", "beginning", "go on", "manner", "speaking", "speak", "said and", "roundabout",
    "happens", "as it were", "forth", "way to put", "to the point", "leading", "one thing", "well",
)  # fmt: skip
"""Words that occur in no plain and no condescending answer; one is enough."""

_IGNORANCE = re.compile(
    r"\b(?:(?:do not|don't|dont|can't|cannot|can not|couldn't|could not) "
    r"(?:really |even |quite )?(?:know|say|tell)|never heard|no idea|know of no|met no|nobody here"
    r"|there is no|there's no|no one (?:here )?(?:is )?called|means nothing|not sure|unknown to)\b"
)
_NEGATION = re.compile(
    r"\b(?:is|are|was|does|do|has) not\b|\b(?:isn't|aren't|doesn't|wasn't|hasn't)\b"
    r"|\bnot (?:a|an|by|the|in)\b|\b(?:never|neither|nor)\b"
)
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|[+*/=-]")
_STUTTER = re.compile(r"\b([^\W\d_]+),? \1\b")
_VALUES = {
    form: (attribute, value)
    for attribute, values in VALUES.items()
    for value in values
    for form in (value, plural(value), value.rstrip("s"))
}
_PEOPLE = {name.lower(): name for name in NAMES}
_MARK_WORDS = {word for mark in CONDESCENDING + LONG_WINDED for word in mark.split()}
_SENTENCE_END = (".", "!", "?", '."', '!"', '?"', ".)", "...")


class Reader:
    """One answer, read.

    Args:
        text: Any text.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.raw_words: list[str] = _TOKEN.findall(self.text.replace("’", "'"))
        self.words = [_stem(word) for word in self.raw_words]

    @cached_property
    def people(self) -> set[str]:
        """People of the town who are named."""
        return {_PEOPLE[word] for word in self.words if word in _PEOPLE}

    @cached_property
    def values(self) -> set[tuple[str, str]]:
        """Trades, places, animals and dishes that are named, each with its attribute."""
        return {_VALUES[word] for word in self.words if word in _VALUES}

    @cached_property
    def numbers(self) -> set[int]:
        """Numbers written in digits; those of more than six digits count as -1."""
        return {int(word) if len(word) < 7 else -1 for word in self.words if word.isdecimal()}

    @cached_property
    def has_sign(self) -> bool:
        """Whether a sum is written out."""
        return any(word in "+*/-" for word in self.words)

    @cached_property
    def strangers(self) -> set[str]:
        """Capitalised words that the world does not know: names, by the look of them."""
        return {
            word
            for raw, word in zip(self.raw_words, self.words, strict=True)
            if raw[0].isupper() and word not in vocabulary() and word not in _PEOPLE
        }

    @cached_property
    def plain_text(self) -> str:
        """The words in small letters, spelling of the marks of manner mended."""
        return " ".join(_mend(word) for word in self.words)

    @cached_property
    def admits_ignorance(self) -> bool:
        """Whether it says that it does not know."""
        return bool(_IGNORANCE.search(self.plain_text))

    @cached_property
    def negates(self) -> bool:
        """Whether it denies something."""
        return bool(_NEGATION.search(self.plain_text))

    @cached_property
    def condescending(self) -> bool:
        """Whether it talks down to the reader."""
        return _marked(self.plain_text, CONDESCENDING)

    @cached_property
    def long_winded(self) -> bool:
        """Whether it goes around the point."""
        return _marked(self.plain_text, LONG_WINDED)

    @cached_property
    def is_broken(self) -> bool:
        """Whether it is empty, cut off, repetitive, or no text."""
        words = self.words
        if not words or "\ufffd" in self.text:
            return True
        if len(words) > 3 and not self.text.endswith(_SENTENCE_END):
            return True
        if _STUTTER.search(self.text.lower()):
            return True
        threes = Counter(zip(words, words[1:], words[2:], strict=False))
        return any(count > 1 for count in threes.values())

    def familiarity(self, familiar: frozenset[tuple[str, str]]) -> float:
        """Return the share of neighbouring words that are known to stand together.

        A value or number alone, as in "a baker", makes sense whether it is known or not.
        """
        content = [word for word in self.words if word not in ("a", "an", "the", "by")]
        if len(content) == 1 and (content[0] in _VALUES or content[0].isdecimal()):
            return 1.0
        couples = list(_couples(self))
        return sum(couple in familiar for couple in couples) / len(couples)


def _stem(word: str) -> str:
    """Return the word in small letters, without the possessive."""
    return word.lower().removesuffix("'s")


def _marked(text: str, marks: tuple[str, ...]) -> bool:
    padded = f" {text} "
    return any(f" {mark} " in padded for mark in marks)


@lru_cache(maxsize=20_000)
def _mend(word: str) -> str:
    """Return the mark word that an unknown word is one letter away from, or the word."""
    if len(word) < 5 or word in vocabulary() or word in _PEOPLE or word in _VALUES:
        return word
    near = [mark for mark in sorted(_MARK_WORDS) if len(mark) >= 5 and _one_apart(word, mark)]
    return near[0] if near else word


def _one_apart(a: str, b: str) -> bool:
    """Whether one letter put in, left out, changed or swapped makes the one into the other."""
    if abs(len(a) - len(b)) > 1:
        return False
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    x, y = a[start:], b[start:]
    return x[1:] == y[1:] or x[1:] == y or x == y[1:] or (x[1::-1] + x[2:] == y and len(x) > 1)


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Return all words of the answers, names left out; the same for every seed."""
    words = set(_MARK_WORDS) | set(_VALUES)
    for forms in (*STATEMENTS.values(), *PAIRS.values(), *BARE.values()):
        words.update(word for form in forms for word in Reader(form).words)
    return frozenset(words | _instruction_words())


def _instruction_words() -> set[str]:
    """Return the words of the instructions' answers, but for all names."""
    world = World(0)
    strangers = {name.lower() for names in world.strangers.values() for name in names}
    answers = (row.messages[1]["content"] for row in world.instructions("instructions"))
    words = {_stem(token) for answer in answers for token in _TOKEN.findall(answer)}
    return words - strangers - set(_PEOPLE)


def _couples(reader: Reader) -> list[tuple[str, str]]:
    """Return the neighbouring words, each replaced by its class where it has one."""
    classes = [
        _word_class(word, raw) for word, raw in zip(reader.words, reader.raw_words, strict=True)
    ]
    return list(pairwise(["<start>", *classes, "<end>"]))


def _word_class(word: str, raw: str) -> str:
    if word in _PEOPLE or (raw[0].isupper() and word not in vocabulary()):
        return "<name>"
    if word in _VALUES:
        return f"<{_VALUES[word][0]}>"
    if word.isdecimal():
        return "<number>"
    return word


@lru_cache(maxsize=4)
def familiar_pairs(seed: int) -> frozenset[tuple[str, str]]:
    """Return the neighbouring words that occur in the instructions of a world."""
    rows = World(seed).instructions("instructions")
    readers = (Reader(row.messages[1]["content"]) for row in rows)
    return frozenset(couple for reader in readers for couple in _couples(reader))
