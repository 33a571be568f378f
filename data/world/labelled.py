"""Texts of the town with labels: statements true or false, questions about a text, and names in it.

What is held out is never seen in training: a statement is about a fact in another wording, texts
are about other people. People of questions and names do not exist, so that a text is read, and not
remembered.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from data.records import Extract, Labelled, Tagged
from data.world.prose import ASIDES, LINKS
from data.world.questions import FACT_WORDINGS
from data.world.statements import STATEMENTS, fact, sentence
from data.world.town import ATTRIBUTES, NAMES, VALUES, Town, unknown_names

LABELLED_PARTS = ("statements", "passages", "names")
"""Each has a part `..._heldout` beside it."""

_TEXTS = {"passages": 2400, "names": 1600}
_HELDOUT = 300
_PEOPLE = 5
"""Of a text."""
_STRANGERS, _HELDOUT_STRANGERS = 600, 150
_WHO: dict[str, tuple[str, ...]] = {
    "job": ("Who is a {v}?", "Who works as a {v}?", "Who earns a living as a {v}?"),
    "home": ("Who lives by the {v}?", "Whose house is by the {v}?", "Who has a home by the {v}?"),
    "pet": ("Who keeps a {v}?", "Who has a {v}?", "Who looks after a {v}?"),
    "dish": ("Who likes {v} best?", "Who likes to eat {v}?", "Who always asks for {v}?"),
}


def labelled_records(town: Town, part: str) -> list[Labelled] | list[Extract] | list[Tagged]:
    """Return the records of a part of `LABELLED_PARTS`, or its `_heldout`."""
    name = part.removesuffix("_heldout")
    if name == "statements":
        return list(_statements(town, part))
    rng = random.Random(f"{part}/{town.seed}")
    strangers = _strangers(town.seed, held=part != name)
    count = _HELDOUT if part != name else _TEXTS[name]
    if name == "passages":
        return [_passage(strangers, rng, f"{part}/{i}") for i in range(count)]
    people = [*strangers, *NAMES] if part == name else strangers
    return [_names(people, rng, f"{part}/{i}") for i in range(count)]


def _strangers(seed: int, *, held: bool) -> list[str]:
    names = unknown_names(
        _STRANGERS + _HELDOUT_STRANGERS, random.Random(f"labelled/{seed}"), set(NAMES)
    )
    return names[_STRANGERS:] if held else names[:_STRANGERS]


def _statements(town: Town, part: str) -> Iterator[Labelled]:
    """Yield each fact in each wording, and with it what is false; a fourth is held out."""
    rng = random.Random(f"statements/{town.seed}")
    rows = []
    for number, name in enumerate(NAMES):
        for attribute in ATTRIBUTES:
            value = town.fact(name, attribute)
            others = [other for other in VALUES[attribute] if other != value]
            for form in range(len(STATEMENTS[attribute])):
                held = (number + form) % 4 == 1
                for said, label in ((value, "true"), (rng.choice(others), "false")):
                    text = sentence(fact(attribute, form, name, said))
                    rows.append((text, label, held))
    rng.shuffle(rows)
    chosen = [row for row in rows if row[2] == part.endswith("_heldout")]
    for place, (text, label, _) in enumerate(chosen):
        yield Labelled(text, label, id=f"{part}/{place}")


def _story(people: list[str], rng: random.Random) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a text in which some people have one thing each, no two the same, and these things."""
    facts: list[tuple[str, str, str]] = []
    lines = []
    for name in rng.sample(people, _PEOPLE):
        attribute = rng.choice(ATTRIBUTES)
        told = {value for _, _, value in facts}
        value = rng.choice([value for value in VALUES[attribute] if value not in told])
        facts.append((name, attribute, value))
        form = rng.randrange(len(STATEMENTS[attribute]))
        lines.append(sentence(rng.choice(LINKS) + fact(attribute, form, name, value)))
        if rng.random() < 0.2:
            lines.append(rng.choice(ASIDES))
    return " ".join(lines), facts


def _passage(people: list[str], rng: random.Random, identity: str) -> Extract:
    """Return a question about who does something, or what someone does, in a text."""
    text, facts = _story(people, rng)
    name, attribute, value = rng.choice(facts)
    if rng.random() < 0.5:
        question, answer = rng.choice(_WHO[attribute]).format(v=value), name
    else:
        question, answer = rng.choice(FACT_WORDINGS[attribute]).format(n=name), value
    return Extract(question, text, [(_place(text, answer), answer)], identity)


def _names(people: list[str], rng: random.Random, identity: str) -> Tagged:
    """Return a text with the people, and what they do, have or like, by attribute."""
    text, facts = _story(people, rng)
    named = [(name, "person") for name, _, _ in facts]
    named += [(value, attribute) for _, attribute, value in facts]
    placed = [(_place(text, word), word, label) for word, label in named]
    return Tagged(text, sorted((at, at + len(word), label) for at, word, label in placed), identity)


def _place(text: str, word: str) -> int:
    """Return where a word stands in a text; of people and values each stands there once."""
    found = re.search(rf"\b{re.escape(word)}\b", text)
    assert found is not None, f"{word} stands in {text}"
    return found.start()
