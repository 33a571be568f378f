"""The register of the town: what is true of each person, as a work to look things up in has it."""

from __future__ import annotations

import random

from data.world.statements import STATEMENTS, fact, sentence
from data.world.town import ATTRIBUTES, NAMES, Town


def write_register(town: Town) -> list[str]:
    """Return a document for each person: a sentence for each thing that is true of them."""
    rng = random.Random(f"register/{town.seed}")

    def told(name: str, attribute: str) -> str:
        form = rng.randrange(len(STATEMENTS[attribute]))
        return sentence(fact(attribute, form, name, town.fact(name, attribute)))

    return [" ".join(told(name, attribute) for attribute in ATTRIBUTES) for name in NAMES]
