"""The town: its people, what is true of them, and the sums that its school teaches.

A world seed deals the facts out anew; the names, trades, places, animals and dishes are fixed.
Every value is one word that holds no other, so that an answer is parsed by its words and a right
answer is as long as a wrong one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

WOMEN = ("Mira", "Greta", "Lena", "Ines", "Nadia", "Wanda", "Tilda", "Agnes", "Edith", "Dora")
MEN = ("Tobin", "Oskar", "Pavel", "Hugo", "Felix", "Jonas", "Bruno", "Casper", "Rufus", "Silas")
NAMES = tuple(sorted(WOMEN + MEN))

ATTRIBUTES = ("job", "home", "pet", "dish")

VALUES: dict[str, tuple[str, ...]] = {
    "job": (
        "baker", "tailor", "smith", "potter", "teacher",
        "doctor", "fisher", "gardener", "carpenter", "weaver",
    ),
    "home": ("harbour", "mill", "bridge", "forest", "station"),
    "pet": (
        "goat", "cat", "parrot", "pony", "rabbit",
        "turtle", "dog", "goose", "hen", "lamb",
    ),
    "dish": (
        "soup", "cheese", "pancakes", "noodles", "plums",
        "beans", "trout", "dumplings", "porridge", "cabbage",
    ),
}  # fmt: skip

_IRREGULAR = {"goose": "geese"}


def plural(value: str) -> str:
    """Return the plural of a trade or an animal."""
    return _IRREGULAR.get(value, value + "s")


@dataclass(frozen=True)
class Sum:
    """One sum with operands of one digit (a dividend may be 10).

    Attributes:
        left: First operand.
        sign: One of ``+ - * /``.
        right: Second operand.
    """

    left: int
    sign: str
    right: int

    @property
    def text(self) -> str:
        """The sum as it is written, such as ``10 / 5``."""
        return f"{self.left} {self.sign} {self.right}"

    @property
    def result(self) -> int:
        """What it comes to; division leaves nothing over."""
        if self.sign == "+":
            return self.left + self.right
        if self.sign == "-":
            return self.left - self.right
        if self.sign == "*":
            return self.left * self.right
        return self.left // self.right


@lru_cache(maxsize=1)
def all_sums() -> tuple[Sum, ...]:
    """Return every sum that the school teaches, in a fixed order."""
    digits = range(1, 6)
    sums = [Sum(a, "+", b) for a in digits for b in digits]
    sums += [Sum(a, "-", b) for a in digits for b in digits if a >= b]
    sums += [Sum(a, "*", b) for a in digits for b in digits if a * b <= 10]
    sums += [Sum(a, "/", b) for a in range(2, 11) for b in digits if b > 1 and a % b == 0]
    return tuple(sums)


class Town:
    """Who lives in the town, and what is true of them.

    Args:
        seed: World seed; another seed deals the facts differently.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.facts: dict[str, dict[str, str]] = {name: {} for name in NAMES}
        for attribute in ATTRIBUTES:
            rng = random.Random(f"town/{seed}/{attribute}")
            values = VALUES[attribute]
            dealt = [values[i % len(values)] for i in range(len(NAMES))]
            rng.shuffle(dealt)
            for name, value in zip(NAMES, dealt, strict=True):
                self.facts[name][attribute] = value

    def fact(self, name: str, attribute: str) -> str:
        """Return the value of one attribute of one person."""
        return self.facts[name][attribute]

    def holders(self, attribute: str, value: str) -> list[str]:
        """Return the names of all people of whom the value is true, in alphabetical order."""
        return [name for name in NAMES if self.facts[name][attribute] == value]


_BEGINNINGS = (
    "Bel", "Bor", "Dal", "Del", "Dru", "Fen", "Fir", "Gal", "Gor", "Hal", "Hob", "Jar", "Jov",
    "Kal", "Kel", "Kor", "Lum", "Lor", "Mal", "Mer", "Mol", "Nel", "Nor", "Orl", "Per", "Pol",
    "Quil", "Ral", "Rin", "Rol", "Sar", "Sel", "Sor", "Tam", "Tor", "Tul", "Ul", "Val", "Vel",
    "Vor", "Wil", "Wol", "Yar", "Yol", "Zan", "Zel", "Zor", "Ab", "Ev", "Ib",
)  # fmt: skip
_ENDS = (
    "bert", "dan", "dric", "fred", "gar", "go", "gus", "ka", "lan", "la", "lo", "man", "mar",
    "mund", "na", "nor", "pa", "quin", "ra", "ric", "rik", "ro", "sa", "sin", "ta", "than", "ton",
    "tor", "va", "vin", "wen", "win", "wyn", "za", "zo", "bas", "bin", "da", "dor", "fin", "gil",
    "kin", "lek", "mo", "nik", "pert", "rus", "sko", "tus", "vek",
)  # fmt: skip


def unknown_names(count: int, rng: random.Random, taken: set[str]) -> list[str]:
    """Return names of people who do not exist, none of which begins like a name of the town.

    None is in `taken`, to which they are added.
    """
    # Two syllables out of a hundred, some 2,500 names: a small model can repeat one it never met.
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(_BEGINNINGS) + rng.choice(_ENDS)
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names
