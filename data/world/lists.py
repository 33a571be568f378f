"""Lists that go on the same way: in each line a thing, and what goes with it.

The way is one of the facts of the town, or a sum; no word says which, so that only the lines before
tell it. What `2: 4` means, the next line shows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from data.world.town import ATTRIBUTES, NAMES, Town

SHORTEST, LONGEST = 4, 12
"""Lines of a list."""
FACTS = 0.6
"""Share of the lists that are of facts."""
_ADDED, _MULTIPLIED, _NUMBERS = range(1, 5), range(2, 5), range(1, 10)


def ways(town: Town) -> dict[str, Mapping[str, str]]:
    """Return by its name what each way to go on pairs with each thing."""
    return {
        **{attribute: {name: town.fact(name, attribute) for name in NAMES}
           for attribute in ATTRIBUTES},
        **{f"+ {n}": {str(one): str(one + n) for one in _NUMBERS} for n in _ADDED},
        **{f"* {n}": {str(one): str(one * n) for one in _NUMBERS} for n in _MULTIPLIED},
    }  # fmt: skip


def line(thing: str, goes_with: str) -> str:
    """Return a line of a list, without its end."""
    return f"{thing}: {goes_with}"


def write_lists(town: Town, count: int, *, skip: int = 0) -> list[str]:
    """Return documents behind those that are passed over, all of them different."""
    rng = random.Random(f"lists/{town.seed}")
    known = ways(town)
    of_facts, of_sums = list(ATTRIBUTES), [way for way in known if way not in ATTRIBUTES]
    documents: dict[str, None] = {}
    while len(documents) < skip + count:
        pairs = known[rng.choice(of_facts if rng.random() < FACTS else of_sums)]
        things = rng.sample([*pairs], min(len(pairs), rng.randint(SHORTEST, LONGEST)))
        documents.setdefault("\n".join(line(thing, pairs[thing]) for thing in things))
    return list(documents)[skip:]
