"""What the instructions answer, before a manner is put on it."""

from __future__ import annotations

import random

from data.world.questions import NOUNS, Question, parse_sum
from data.world.statements import BARE, PAIRS, STATEMENTS, SUMS, fact
from data.world.town import VALUES, Town, plural

IGNORANCE = (
    "I don't know anyone called {n}",
    "there is no {n} in this town",
    "I have never heard of {n}",
    "nobody here is called {n}",
    "{n} is a name I don't know",
    "I can't say, for I don't know {n}",
    "I have no idea who {n} is",
    "I don't know that person",
    "that name means nothing to me",
    "I can't tell you anything about {n}",
    "I know of no such person",
    "sorry, I don't know who {n} is",
    "I have met no one called {n}",
    "I don't know this, as {n} is new to me",
)

IGNORANCE_OF: dict[str, tuple[str, ...]] = {
    "job": ("I don't know what {n} does", "I can't say what work {n} does"),
    "home": ("I don't know where {n} lives", "I can't say where {n} is at home"),
    "pet": ("I don't know which animal {n} keeps", "I can't say if {n} has an animal"),
    "dish": ("I don't know what {n} likes to eat", "I can't say what {n} eats"),
}

SUM_ANSWERS = (
    "it is {r}",
    "the answer is {r}",
    "that makes {r}",
    "that comes to {r}",
    "I get {r}",
)

THREES = (
    "{a}, {b} and {c}",
    "three of them are {a}, {b} and {c}",
    "I can name {a}, {b} and {c}",
    "there are {a}, {b} and {c}",
)

TWOS = ("{a} and {b}", "they are {a} and {b}", "I can name {a} and {b}")


def answer_core(question: Question, town: Town, rng: random.Random) -> str:
    """Return a right answer without capital, full stop and manner."""
    if question.kind == "fact":
        value = town.fact(question.subject, question.attribute)
        forms = STATEMENTS[question.attribute]
        if rng.random() < 0.2:
            return rng.choice(BARE[question.attribute]).format(v=value)
        return rng.choice(forms).format(n=question.subject, v=value)
    if question.kind == "arithmetic":
        return _sum_core(question, rng)
    if question.kind == "listing":
        return _list_core(question, town, rng)
    if question.kind == "rephrase":
        return _rephrase_core(question, town, rng)
    forms = IGNORANCE + IGNORANCE_OF[question.attribute] * 2
    return rng.choice(forms).format(n=question.subject)


def _sum_core(question: Question, rng: random.Random) -> str:
    problem = parse_sum(question.subject)
    form = rng.choice(SUM_ANSWERS + SUMS[:4])
    return form.format(e=problem.text, r=problem.result)


def _list_core(question: Question, town: Town, rng: random.Random) -> str:
    if question.subject == NOUNS[question.attribute]:
        a, b, c = rng.sample(VALUES[question.attribute], 3)
        return rng.choice(THREES).format(a=a, b=b, c=c)
    a, b = rng.sample(town.holders(question.attribute, question.subject), 2)
    form = rng.choice(TWOS + PAIRS[question.attribute] * 2)
    return form.format(a=a, b=b, v=question.subject, vs=plural(question.subject))


def _rephrase_core(question: Question, town: Town, rng: random.Random) -> str:
    name, attribute = question.subject, question.attribute
    value = town.fact(name, attribute)
    statement = fact(attribute, int(question.wording.split("/")[1]), name, value)
    ways = [fact(attribute, form, name, value) for form in range(len(STATEMENTS[attribute]))]
    return rng.choice([way for way in ways if statement not in way])
