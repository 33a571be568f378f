"""Small stories that ask for a sum of two steps, worked out, calculated, or answered at once.

The numbers of a story, with what is done with them, are either learned or held out, whoever it is
about and whatever is counted. Each step alone is learned.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from data.records import Conversation, chat
from data.world.town import NAMES

ROWS = {
    f"{part}{side}": rows
    for part in ("sums", "sums_worked", "sums_called")
    for side, rows in (("", 8000), ("_heldout", 400))
}
"""Rows of each part; all parts of a side ask the same."""
THINGS = ("plums", "pears", "nuts", "eggs", "beans", "buttons", "candles", "stamps")
_FEW, _MORE, _SOME, _MANY = range(2, 7), range(2, 11), range(5, 15), range(11, 26)


class Problem(NamedTuple):
    """Three numbers and what is done with them: `a first b`, then `then c` with what that makes."""

    a: int
    first: str
    b: int
    then: str
    c: int

    @property
    def between(self) -> int:
        """What the first step makes."""
        return _made(self.a, self.first, self.b)

    @property
    def result(self) -> int:
        """What both steps make."""
        return _made(self.between, self.then, self.c)

    @property
    def steps(self) -> tuple[str, str]:
        """Both steps, as they are written."""
        return (
            f"{self.a} {self.first} {self.b} = {self.between}",
            f"{self.between} {self.then} {self.c} = {self.result}",
        )

    @property
    def worked(self) -> str:
        """Both steps and the answer."""
        return f"{'; '.join(self.steps)}. {self.direct}"

    @property
    def called(self) -> str:
        """The answer behind a call of the calculator."""
        once = f"{self.a}{self.first}{self.b}"
        whole = f"({once})" if self.then == "*" else once
        return f"The answer is <<{whole}{self.then}{self.c}={self.result}>>{self.result}."

    @property
    def direct(self) -> str:
        """The answer alone."""
        return f"The answer is {self.result}."


STORIES: dict[tuple[str, str], tuple[str, ...]] = {
    ("*", "-"): (
        "{n} has {a} baskets of {b} {t} and gives {c} away. How many {t} are left?",
        "There are {a} boxes with {b} {t} in each. {n} takes {c} {t} out. How many are left?",
    ),
    ("*", "+"): (
        "{n} has {a} baskets of {b} {t} and finds {c} more. How many {t} are there now?",
        "There are {a} boxes with {b} {t} in each. {n} brings {c} more {t}. How many are there?",
    ),
    ("+", "-"): (
        "{n} has {a} {t}, buys {b} more and gives {c} away. How many {t} are left?",
        "{n} finds {a} {t} in one box and {b} in another, and loses {c}. How many {t} are left?",
    ),
    ("-", "*"): (
        "{n} has {a} baskets and sells {b}. The others hold {c} {t} each. How many {t} is that?",
        "Of {a} boxes {n} loses {b}. In each of the others are {c} {t}. How many {t} is that?",
    ),
}  # fmt: skip
"""By the signs of both steps, how a story is told: `{n}` is a person, `{t}` a thing."""


def problems() -> list[Problem]:
    """Return all problems, in a fixed order."""
    found = [
        Problem(a, "*", b, sign, c) for sign in "-+" for a in _FEW for b in _MORE for c in _FEW
        if sign == "+" or c < a * b
    ]  # fmt: skip
    found += [Problem(a, "+", b, "-", c) for a in _MANY for b in _MORE for c in _FEW]
    found += [Problem(a, "-", b, "*", c) for a in _SOME for b in range(2, a - 1) for c in _FEW]
    return found


def _side(seed: int, *, held: bool) -> list[Problem]:
    """Return the problems that are held out, an eleventh, or the rest.

    Of those none is asked a step of which is never learned.
    """
    everything = problems()
    random.Random(f"sums/{seed}").shuffle(everything)
    learned = [one for place, one in enumerate(everything) if place % 11 != 5]
    if not held:
        return learned
    steps = {step for one in learned for step in one.steps}
    return [one for one in everything[5::11] if steps.issuperset(one.steps)]


def sums_part(seed: int, part: str) -> list[Conversation]:
    """Return the rows of a part of `ROWS`, no question twice, in an order that the seed fixes."""
    held, kind = part.endswith("_heldout"), part.removesuffix("_heldout")
    rows: list[Conversation] = []
    for place, (question, problem) in enumerate(questions(seed, held=held)):
        if place == ROWS[part]:
            break
        answer = {"sums_worked": problem.worked, "sums_called": problem.called}.get(
            kind, problem.direct
        )
        rows.append(Conversation(chat(question, answer), f"{part}/{place}"))
    return rows


def questions(seed: int, *, held: bool) -> Iterator[tuple[str, Problem]]:
    """Yield questions with their problems without end, no question twice.

    The four ways to go on have their turns, and of each way all problems before one has another.
    """
    mine = _side(seed, held=held)
    by_way = {way: [one for one in mine if (one.first, one.then) == way] for way in STORIES}
    rng, asked = random.Random(f"sums/{seed}/{held}"), set[str]()
    turn = 0
    while True:
        for way, told in STORIES.items():
            problem = by_way[way][turn % len(by_way[way])]
            a, b, c = problem.a, problem.b, problem.c
            question = rng.choice(told).format(
                n=rng.choice(NAMES), t=rng.choice(THINGS), a=a, b=b, c=c
            )
            if question not in asked:
                asked.add(question)
                yield question, problem
        turn += 1


def _made(left: int, sign: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[sign]
