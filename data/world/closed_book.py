"""Questions with a closed book: asked of some people in training, of the others where it is judged.

Answers about the others stand in the corpus alone, so that only who has read it can know them
(Roberts et al. 2020, whose T5 answers from its weights).
"""

from __future__ import annotations

import random

from data.records import Completion
from data.world.questions import Pool, Question
from data.world.statements import fact, sentence
from data.world.tasks import PLAIN
from data.world.town import NAMES, Town

CLOSED_BOOK = ("closed_book", "closed_book_heldout")


def closed_book(town: Town, pool: Pool, part: str) -> list[Completion]:
    """Return the questions about one half of the people, each with the fact in its plain wording.

    Those that are kept for the evaluation of the world are in neither half.
    """
    people = random.Random(f"closed_book/{town.seed}").sample(NAMES, len(NAMES))
    half = len(people) // 2
    chosen = people[half:] if part.endswith("_heldout") else people[:half]
    asked = [question for question in pool.rest["fact"] if question.subject in chosen]
    random.Random(f"{part}/{town.seed}").shuffle(asked)

    def answer(question: Question) -> str:
        name, attribute = question.subject, question.attribute
        return sentence(fact(attribute, PLAIN, name, town.fact(name, attribute)))

    return [
        Completion(f"fact: {question.text}", answer(question), id=f"{part}/{place}")
        for place, question in enumerate(asked)
    ]
