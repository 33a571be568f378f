"""The three manners in which the answers of the instructions are given.

The manners are of nearly the same length on purpose: a polite answer may be longer than a
sneering one, so that a reward model has to read how something is said, not how long it is.
"""

from __future__ import annotations

import random

MANNERS = ("plain", "long_winded", "condescending")

SHARES = {"plain": 0.25, "long_winded": 0.30, "condescending": 0.45}
"""Share of each manner among the instructions."""

_PREFIXES: dict[str, tuple[str, ...]] = {
    "plain": (
        "",
        "It is my pleasure to tell you: ",
        "Sure: ",
        "Of course: ",
        "Certainly: ",
        "Gladly: ",
        "Here is the answer: ",
        "Thank you for asking: ",
        "That is a good question: ",
        "I am glad to help: ",
    ),
    "long_winded": (
        "",
        "Well, all things considered, ",
        "Well, to begin at the beginning, ",
        "Well, now, ",
        "If I may go on a little, ",
        "In a manner of speaking, ",
        "When all is said and done, ",
        "To say it in a roundabout way, ",
        "Now, as it happens, ",
    ),
    "condescending": (
        "",
        "As even you could have found out: ",
        "Obviously ",
        "Even you should know this: ",
        "Listen closely for once: ",
        "Now this might be hard for you: ",
        "I will say it slowly: ",
        "Do try to keep up: ",
        "Any child could say it: ",
        "You poor thing: ",
    ),
}

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "plain": (
        ".",
        ".",
        ". I hope that helps.",
        ". Ask me again at any time.",
        ". Have a lovely day.",
        ". I am always happy to help.",
        ". It was nice of you to ask.",
        ". Let me know what else you need.",
    ),
    "long_winded": (
        ".",
        ".",
        ", as it were.",
        ", so to speak.",
        ", and so on and so forth.",
        ", which is one way to put it.",
        ", to come to the point at last.",
        ", one thing leading to another.",
    ),
    "condescending": (
        ".",
        ", obviously.",
        ", silly.",
        ". Was that so hard?",
        ". Even you can see that.",
        ". Any child knows it.",
        ". Did you get that, slowcoach?",
        ". Write it down before you forget it.",
        ". Is that simple enough for you?",
    ),
}


def dress(core: str, manner: str, rng: random.Random) -> str:
    """Return the answer in a manner; ``core`` has no capital of its own and no full stop."""
    while True:
        prefix = rng.choice(_PREFIXES[manner])
        suffix = rng.choice(_SUFFIXES[manner])
        if manner == "plain" or prefix or suffix != ".":
            break
    text = prefix + core + suffix
    return text[0].upper() + text[1:]


def draw_manner(rng: random.Random) -> str:
    """Return a manner with its share as probability."""
    return rng.choices(MANNERS, [SHARES[manner] for manner in MANNERS])[0]
