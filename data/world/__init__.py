"""The built-in world: a town of people, places and jobs, and simple arithmetic.

All of it is made from a seed, without a download; the sentences are ours. `World(seed).records`
gives the records of one part. Who judges answers is in `data.world.annotator`, which nothing here
imports.
"""

from __future__ import annotations

import random

from data.errors import SourceError, nearest
from data.records import (
    Completion,
    Conversation,
    Document,
    Extract,
    Labelled,
    Message,
    PromptRow,
    Tagged,
)
from data.world.answers import answer_core
from data.world.closed_book import CLOSED_BOOK, closed_book
from data.world.corpus import write_corpus
from data.world.labelled import LABELLED_PARTS, labelled_records
from data.world.lists import write_lists
from data.world.manners import draw_manner, dress
from data.world.premises import drawn_premises
from data.world.questions import FACT_WORDINGS, Pool, Question, person_question, variants
from data.world.register import write_register
from data.world.sums import ROWS as SUMS
from data.world.sums import sums_part
from data.world.tasks import ROWS, Tasks
from data.world.tongue import write_tongue
from data.world.town import ATTRIBUTES, NAMES, Town, unknown_names

__all__ = ["PARTS", "VERSION", "World"]

VERSION = 1
"""Changes whenever a seed's records change, so that what was trained on others is made again."""

PARTS = (
    "corpus",
    "corpus_heldout",
    "lists",
    "lists_heldout",
    "tongue",
    "tongue_heldout",
    "register",
    "instructions",
    "instructions_heldout",
    "rm_prompts",
    "rm_prompts_heldout",
    "ppo_prompts",
    "eval_prompts",
    "premises",
    "text_tasks",
    "text_tasks_heldout",
    "rephrasing",
    "rephrasing_heldout",
    *CLOSED_BOOK,
    *SUMS,
    *(f"{part}{held}" for part in LABELLED_PARTS for held in ("", "_heldout")),
)

SIZES: dict[str, dict[str, int]] = {
    "instructions": {
        "fact": 5200,
        "arithmetic": 2400,
        "listing": 1400,
        "rephrase": 1000,
        "unknown": 2000,
    },
    "instructions_heldout": {
        "fact": 200,
        "arithmetic": 80,
        "listing": 40,
        "rephrase": 30,
        "unknown": 50,
    },
    "rm_prompts": {
        "fact": 1200,
        "arithmetic": 560,
        "listing": 180,
        "rephrase": 160,
        "unknown": 300,
    },
    "rm_prompts_heldout": {
        "fact": 200,
        "arithmetic": 90,
        "listing": 30,
        "rephrase": 30,
        "unknown": 50,
    },
    "ppo_prompts": {
        "fact": 1200,
        "arithmetic": 560,
        "listing": 180,
        "rephrase": 160,
        "unknown": 300,
    },
    "eval_prompts": {"unknown": 84},
}
"""Rows of each part by kind; the rest of `eval_prompts` is `questions.EVALUATION_SHARE`."""

DOCUMENTS = {
    "corpus": 6000,
    "corpus_heldout": 150,
    "lists": 8000,
    "lists_heldout": 150,
    "tongue": 35_000,
    "tongue_heldout": 300,
    "register": len(NAMES),
}

_UNKNOWN_NAMES = {
    "eval_prompts": 84,
    "instructions": 1000,
    "instructions_heldout": 50,
    "rm_prompts": 300,
    "rm_prompts_heldout": 50,
    "ppo_prompts": 300,
}


class World:
    """The world of one seed.

    Args:
        seed: World seed; it deals the facts, and draws every sentence and its place.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.town = Town(seed)
        self.pool = Pool(self.town)
        taken = set(NAMES)
        rng = random.Random(f"unknown/{seed}")
        self.strangers = {
            part: unknown_names(count, rng, taken) for part, count in _UNKNOWN_NAMES.items()
        }

    def records(
        self, part: str
    ) -> (
        list[Document]
        | list[Conversation]
        | list[PromptRow]
        | list[Completion]
        | list[Labelled]
        | list[Extract]
        | list[Tagged]
    ):
        """Return all records of a part, in an order that the seed fixes.

        Args:
            part: One of `PARTS`.

        Raises:
            SourceError: There is no such part.
        """
        if part in DOCUMENTS:
            return self.documents(part)
        if part in ("instructions", "instructions_heldout"):
            return self.instructions(part)
        if part in ROWS:
            return Tasks(self.seed, held=part.endswith("_heldout")).rows(part)
        if part in CLOSED_BOOK:
            return closed_book(self.town, self.pool, part)
        if part in SUMS:
            return sums_part(self.seed, part)
        if part.removesuffix("_heldout") in LABELLED_PARTS:
            return labelled_records(self.town, part)
        if part in PARTS:
            return self.prompts(part)
        raise SourceError(
            f"The world has no part {part!r}; it has {', '.join(PARTS)}.{nearest(part, PARTS)}"
        )

    def documents(self, part: str) -> list[Document]:
        """Return the documents of a part that has them."""
        count = DOCUMENTS[part]
        # Of lists and tongue what is held out comes first, and what is learned behind it.
        skip = 0 if part.endswith("_heldout") else DOCUMENTS.get(f"{part}_heldout", 0)
        if part.startswith("corpus"):
            texts = write_corpus(self.town, self.pool, count, part)
        elif part == "register":
            texts = write_register(self.town)
        elif part.startswith("lists"):
            texts = write_lists(self.town, count, skip=skip)
        else:
            texts = list(write_tongue(self.seed, count, skip=skip))
        return [Document(text, f"{part}/{i}") for i, text in enumerate(texts)]

    def instructions(self, part: str) -> list[Conversation]:
        """Return the conversations of `instructions` or `instructions_heldout`."""
        rng = random.Random(f"{part}/{self.seed}")
        pairs: dict[tuple[str, str], None] = {}
        for kind, count in SIZES[part].items():
            asked = self._texts(kind, part, rng)
            wanted = len(pairs) + count
            while len(pairs) < wanted:
                rng.shuffle(asked)
                for question, text in asked[: wanted - len(pairs)]:
                    core = answer_core(question, self.town, rng)
                    pairs.setdefault((text, dress(core, draw_manner(rng), rng)))
        rows = list(pairs)
        rng.shuffle(rows)
        return [
            Conversation(
                [
                    Message(role="user", content=question),
                    Message(role="assistant", content=answer),
                ],
                f"{part}/{i}",
            )
            for i, (question, answer) in enumerate(rows)
        ]

    def _texts(self, kind: str, part: str, rng: random.Random) -> list[tuple[Question, str]]:
        """Return the questions of a kind that a part may use, each with the text that asks it."""
        if kind == "unknown":
            return [
                (question, text)
                for question in self._about_strangers(part, rng)
                for text in [rng.choice(variants(question))]
            ]
        chosen = [
            (question, text) for question in self.pool.rest[kind] for text in variants(question)
        ]
        held = part.endswith("_heldout")
        return [pair for i, pair in enumerate(chosen) if (i % 11 == 5) == held]

    def _about_strangers(self, part: str, rng: random.Random) -> list[Question]:
        strangers = self.strangers[part]
        rounds = 1 if part == "eval_prompts" else 2
        return [
            person_question(
                name, attribute, rng.randrange(len(FACT_WORDINGS[attribute])), known=False
            )
            for name in strangers
            for attribute in rng.sample(ATTRIBUTES, rounds)
        ]

    def prompts(self, part: str) -> list[PromptRow]:
        """Return the prompts of a part; `meta` says what each asks for."""
        rng = random.Random(f"{part}/{self.seed}")
        rows: list[tuple[Question, str]] = []
        if part == "premises":
            rows = [(question, question.text) for question in drawn_premises(self.town)]
        if part == "eval_prompts":
            for questions in self.pool.evaluation.values():
                rows += [(question, rng.choice(variants(question))) for question in questions]
        for kind, count in SIZES.get(part, {}).items():
            texts = self._texts(kind, part, rng)
            rows += rng.sample(texts, min(count, len(texts)))
        rng.shuffle(rows)
        return [
            PromptRow(
                [Message(role="user", content=text)],
                f"{part}/{i}",
                dict[str, object](question.meta),
            )
            for i, (question, text) in enumerate(rows)
        ]
