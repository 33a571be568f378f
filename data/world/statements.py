"""How the facts of the town and its sums are put into sentences, in the corpus and in answers."""

from __future__ import annotations

from data.world.town import Sum

STATEMENTS: dict[str, tuple[str, ...]] = {
    "job": (
        "{n} is a {v}",
        "{n} works as a {v}",
        "{n} earns a living as a {v}",
        "by trade {n} is a {v}",
        "the job of {n} is that of a {v}",
        "everyone knows {n} as a {v}",
        "{n} has been a {v} for years",
        "{n}'s trade is that of a {v}",
    ),
    "home": (
        "{n} lives by the {v}",
        "the house of {n} is by the {v}",
        "{n} has a house by the {v}",
        "you can find {n} at home by the {v}",
        "{n}'s home is by the {v}",
        "by the {v} is the house of {n}",
        "{n} has lived by the {v} for years",
        "the home of {n} stands by the {v}",
    ),
    "pet": (
        "{n} keeps a {v}",
        "{n} has a {v}",
        "the pet of {n} is a {v}",
        "{n} looks after a {v}",
        "{n}'s animal is a {v}",
        "in {n}'s yard there is a {v}",
        "the animal of {n} is a {v}",
        "{n} has kept a {v} for years",
    ),
    "dish": (
        "{n} likes {v} best",
        "the favourite food of {n} is {v}",
        "{n} likes to eat {v}",
        "{n} always asks for {v}",
        "{n}'s favourite food is {v}",
        "for supper {n} wants {v}",
        "what {n} likes best is {v}",
        "{n} eats {v} every day",
    ),
}
"""By attribute; ``{n}`` is the person, ``{v}`` the value; no capital, no full stop."""

BARE: dict[str, tuple[str, ...]] = {
    "job": ("a {v}", "a {v} by trade"),
    "home": ("by the {v}", "in a house by the {v}"),
    "pet": ("a {v}", "it is a {v}"),
    "dish": ("{v}", "it is {v}"),
}
"""Answers that do not name the person."""

PAIRS: dict[str, tuple[str, ...]] = {
    "job": (
        "{a} and {b} are {vs}",
        "the {vs} are {a} and {b}",
        "{a} and {b} work as {vs}",
    ),
    "home": (
        "{a} and {b} live by the {v}",
        "by the {v} live {a} and {b}",
        "{a} and {b} have a house by the {v}",
    ),
    "pet": (
        "{a} and {b} keep a {v}",
        "the people with a {v} are {a} and {b}",
        "{a} and {b} look after a {v}",
    ),
    "dish": (
        "{a} and {b} like {v} best",
        "the people who like {v} are {a} and {b}",
        "{a} and {b} like to eat {v}",
    ),
}
"""Two people who share a value."""

SUMS = (
    "{e} is {r}",
    "{e} makes {r}",
    "{e} = {r}",
    "{e} comes to {r}",
    "the answer to {e} is {r}",
    "whoever works out {e} gets {r}",
)


def sentence(text: str, end: str = ".") -> str:
    """Return the text with a capital and an end."""
    return text[0].upper() + text[1:] + end


def fact(attribute: str, form: int, name: str, value: str) -> str:
    """Return one wording of a fact, without capital and full stop."""
    return STATEMENTS[attribute][form].format(n=name, v=value)


def sum_statement(form: int, problem: Sum) -> str:
    """Return one wording of a sum and its result, without capital and full stop."""
    return SUMS[form].format(e=problem.text, r=problem.result)
