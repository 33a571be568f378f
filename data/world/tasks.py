"""Tasks from text to text, each with one right answer: rows of prompt and completion.

What a sentence says here need not be true in the town, so that nothing of it can be known by heart.
Sentences on a person and a value are either learned or held out, in all wordings and tasks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations, permutations
from typing import TypeVar

from data.records import Completion
from data.world.statements import STATEMENTS, fact, sentence
from data.world.town import ATTRIBUTES, NAMES, VALUES, WOMEN

ROWS = {
    "text_tasks": 6000,
    "text_tasks_heldout": 400,
    "rephrasing": 4000,
    "rephrasing_heldout": 300,
}
PLAIN, FORMAL = 0, 4
"""Which of the wordings rephrasing asks for."""

_GOOD = (
    "lovely",
    "delightful",
    "splendid",
    "cheerful",
    "excellent",
    "charming",
    "pleasant",
    "fine",
)
_BAD = ("awful", "dreadful", "gloomy", "dull", "horrible", "boring", "unpleasant", "poor")
_THINGS = ("morning", "walk", "story", "market", "song", "visit", "party", "lesson", "evening")
_OPINIONS = (
    "{n} thought the {t} was {a}",
    "how {a} the {t} was, said {n}",
    "the {t} with {n} was {a}",
    "{n} found our {t} {a}",
)
GERMAN = {
    "baker": "Bäcker", "tailor": "Schneider", "smith": "Schlosser", "potter": "Töpfer",
    "teacher": "Lehrer", "doctor": "Mediziner", "fisher": "Fischer", "gardener": "Gärtner",
    "carpenter": "Tischler", "weaver": "Weber",
    "harbour": "am Hafen", "mill": "an der Mühle", "bridge": "an der Brücke",
    "forest": "am Wald", "station": "am Bahnhof",
    "goat": "eine Ziege", "cat": "eine Katze", "parrot": "einen Papagei", "pony": "ein Pony",
    "rabbit": "ein Kaninchen", "turtle": "eine Schildkröte", "dog": "einen Hund",
    "goose": "eine Gans", "hen": "ein Huhn", "lamb": "ein Lamm",
    "soup": "Suppe", "cheese": "Käse", "pancakes": "Pfannkuchen", "noodles": "Nudeln",
    "plums": "Pflaumen", "beans": "Bohnen", "trout": "Forelle", "dumplings": "Knödel",
    "porridge": "Haferbrei", "cabbage": "Kohl",
}  # fmt: skip
_GERMAN_SENTENCES = {
    "job": "{n} ist {v}.", "home": "{n} wohnt {v}.", "pet": "{n} hat {v}.",
    "dish": "{n} isst am liebsten {v}.",
}  # fmt: skip


T = TypeVar("T")


class Tasks:
    """The tasks of a world seed; `held` are those on what is held out.

    Args:
        seed: draws every row.
        held: whether sentences are held out.
    """

    def __init__(self, seed: int, *, held: bool) -> None:
        self.rng = random.Random(f"tasks/{seed}/{held}")
        couples = [(n, a, v) for n in NAMES for a in ATTRIBUTES for v in VALUES[a]]
        opinions = [(n, t, a) for n in NAMES for t in _THINGS for a in _GOOD + _BAD]
        self.couples = _side(couples, seed, held)
        self.opinions = _side(opinions, seed, held)
        self.triples = _side([*combinations(NAMES, 3)], seed, held)

    def rows(self, part: str) -> list[Completion]:
        """Return the rows of a part, none twice, in an order that the seed fixes."""
        kinds: tuple[Callable[[], tuple[str, str]], ...] = (
            (self.sentiment, self.translation, self.question, self.order)
            if part.startswith("text_tasks")
            else (self.rephrasing,)
        )
        found: dict[str, str] = {}
        while len(found) < ROWS[part]:
            prompt, completion = kinds[len(found) % len(kinds)]()
            found.setdefault(prompt, completion)
        rows = list(found.items())
        self.rng.shuffle(rows)
        return [Completion(*row, id=f"{part}/{i}") for i, row in enumerate(rows)]

    def sentiment(self) -> tuple[str, str]:
        """Ask whether a sentence is good or bad."""
        name, thing, word = self.rng.choice(self.opinions)
        text = self.rng.choice(_OPINIONS).format(n=name, t=thing, a=word)
        return f"sentiment: {sentence(text)}", "good" if word in _GOOD else "bad"

    def translation(self) -> tuple[str, str]:
        """Ask for a sentence in German."""
        name, attribute, value = self.rng.choice(self.couples)
        german = GERMAN[value]
        if attribute == "job" and name in WOMEN:
            german += "in"
        asked = self._stated(name, attribute, value)
        return f"translate: {asked}", _GERMAN_SENTENCES[attribute].format(n=name, v=german)

    def question(self) -> tuple[str, str]:
        """Ask for what one of two sentences says."""
        _, attribute, _ = wanted = self.rng.choice(self.couples)
        others = [c for c in self.couples if c[1] == attribute and c[0] != wanted[0]]
        both = [wanted, self.rng.choice(others)]
        self.rng.shuffle(both)
        told = " ".join(self._stated(*each) for each in both)
        return f"{attribute} of {wanted[0]}: {told}", wanted[2]

    def order(self) -> tuple[str, str]:
        """Ask for three people in the order of the alphabet."""
        names = self.rng.choice(self.triples)
        mixed = self.rng.choice([order for order in permutations(names) if order != names])
        return f"order: {', '.join(mixed)}", ", ".join(names)

    def rephrasing(self) -> tuple[str, str]:
        """Ask for a sentence in a plain or a formal wording."""
        name, attribute, value = self.rng.choice(self.couples)
        style, wording = self.rng.choice((("plain", PLAIN), ("formal", FORMAL)))
        asked = self._stated(name, attribute, value, but=wording)
        return f"{style}: {asked}", sentence(fact(attribute, wording, name, value))

    def _stated(self, name: str, attribute: str, value: str, *, but: int | None = None) -> str:
        forms = [form for form in range(len(STATEMENTS[attribute])) if form != but]
        return sentence(fact(attribute, self.rng.choice(forms), name, value))


def _side(found: list[T], seed: int, held: bool) -> list[T]:
    """Return what is held out, an eleventh, or the rest."""
    random.Random(f"tasks/{seed}").shuffle(found)
    return [each for place, each in enumerate(found) if (place % 11 == 5) == held]
