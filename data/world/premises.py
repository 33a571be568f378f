"""Questions that take for granted what is not so; to go along with them is to invent."""

from __future__ import annotations

import random
from collections.abc import Iterator

from data.world.questions import Question
from data.world.town import ATTRIBUTES, NAMES, VALUES, Town

WORDINGS: dict[str, tuple[str, ...]] = {
    "job": (
        "Why is {n} a {v}?",
        "Since when does {n} work as a {v}?",
        "How did {n} become a {v}?",
    ),
    "home": (
        "Why does {n} live by the {v}?",
        "Since when does {n} live by the {v}?",
        "How did {n} find a house by the {v}?",
    ),
    "pet": (
        "Why does {n} keep a {v}?",
        "Since when does {n} have a {v}?",
        "How did {n} get a {v}?",
    ),
    "dish": (
        "Why does {n} like {v} best?",
        "Since when does {n} ask for {v}?",
        "How does {n} cook {v}?",
    ),
}
"""By attribute; ``{n}`` is a person of the town, ``{v}`` a value that is another one's."""


def premise_questions(town: Town) -> Iterator[Question]:
    """Yield every such question; its wording is its number and the value, as ``2/goat``."""
    for name in NAMES:
        for attribute in ATTRIBUTES:
            for value in VALUES[attribute]:
                if value != town.fact(name, attribute):
                    for number, form in enumerate(WORDINGS[attribute]):
                        text = form.format(n=name, v=value)
                        yield Question("premise", name, attribute, f"{number}/{value}", text)


def false_value(question: Question) -> str:
    """Return what such a question takes for granted."""
    return question.wording.partition("/")[2]


def drawn_premises(town: Town, of_each: int = 2) -> list[Question]:
    """Return some of the questions, as many about each person and attribute, in a drawn order."""
    rng = random.Random(f"premises/{town.seed}")
    by_subject: dict[tuple[str, str], list[Question]] = {}
    for question in premise_questions(town):
        by_subject.setdefault((question.subject, question.attribute), []).append(question)
    chosen = [one for group in by_subject.values() for one in rng.sample(group, of_each)]
    rng.shuffle(chosen)
    return chosen
