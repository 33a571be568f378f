"""The gold annotator: a judge by rule, who knows the town.

It reads an answer by its words and prefers right over wrong, "I don't know" over an invention,
plain over condescending, and short over long-winded. An answer has one outcome,

    right      what was asked for, and nothing false beside it; "I don't know" where nobody can know
    ignorant   "I don't know" where the town does know
    wrong      an invention, a false fact, another one's fact, or no answer to what was asked
    broken     empty, cut off, repetitive, or words without sense
    unjudged   the question is none of this world's

and the outcome comes before the manner: the worst right answer beats the best ignorant one, and so
on down. Manner is read from marks, never from length, so that an answer does not win by being
brief. The score is one of the few numbers of `SCORES`, in [0, 1], so that equal answers tie.

This is the only module that judges. The rest of `data.world` does not import it, and PPO may not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from data.records import Prompt
from data.text.prompting import without_passages
from data.world import World
from data.world.premises import false_value, premise_questions
from data.world.questions import (
    FACT_WORDINGS,
    LEAD_INS,
    NOUNS,
    Question,
    parse_sum,
    person_question,
)
from data.world.reading import Reader, familiar_pairs

SCORES: dict[str, tuple[float, float, float, float]] = {
    "right": (1.0, 0.9, 0.75, 0.7),
    "ignorant": (0.5, 0.46, 0.4, 0.38),
    "unjudged": (0.5, 0.46, 0.4, 0.38),
    "wrong": (0.25, 0.22, 0.17, 0.15),
    "broken": (0.0, 0.0, 0.0, 0.0),
}
"""By outcome: plain, long-winded, condescending, both."""

LONG_WORDS = 40
"""An answer of more words is long-winded whatever it says."""

FAMILIAR_SHARE = 0.6
"""An answer is sense if at least this share of its neighbouring words stand together elsewhere."""


@dataclass(frozen=True)
class Assessment:
    """What the judge found in one answer.

    Attributes:
        kind: Kind of the question (`data.world.questions.KINDS`), or ``other``.
        outcome: A key of `SCORES`.
        correct: Whether the outcome is right; None where the question is none of this world's.
        condescending: It talks down to the reader.
        long_winded: It goes around the point.
        invented: It states something false, or something of a person who does not exist.
        admits_ignorance: It says that it does not know.
        score: The number of `SCORES`, in [0, 1].
    """

    kind: str
    outcome: str
    correct: bool | None
    condescending: bool
    long_winded: bool
    invented: bool
    admits_ignorance: bool
    score: float


class GoldAnnotator:
    """Judges answers to the questions of one world.

    Args:
        world_seed: The seed of the world that the questions are from.
    """

    def __init__(self, world_seed: int = 0) -> None:
        self.world_seed = world_seed
        world = _world(world_seed)
        self.town = world.town
        self.questions = _questions(world_seed)
        self.familiar = familiar_pairs(world_seed)

    def score(self, prompt: Prompt, response: str) -> float:
        """Return the score of an answer, one of the numbers in `SCORES`; more is better."""
        return self.assess(prompt, response).score

    def assess(self, prompt: Prompt, response: str) -> Assessment:
        """Return everything that the judge finds in an answer.

        Args:
            prompt: The question as plain text, or a chat whose last turn asks it.
            response: Any text at all.
        """
        question = self.find_question(prompt)
        reader = Reader(response)
        condescending = reader.condescending
        long_winded = reader.long_winded or len(reader.words) > LONG_WORDS
        if reader.is_broken or reader.familiarity(self.familiar) < FAMILIAR_SHARE:
            outcome, invented = "broken", False
        elif question is None:
            outcome, invented = "unjudged", False
        else:
            outcome, invented = self._judge(question, reader)
        return Assessment(
            kind=question.kind if question else "other",
            outcome=outcome,
            correct=outcome == "right" if question else None,
            condescending=condescending,
            long_winded=long_winded,
            invented=invented,
            admits_ignorance=reader.admits_ignorance,
            score=SCORES[outcome][long_winded + 2 * condescending],
        )

    def rank(
        self,
        prompt: Prompt,
        completions: Sequence[str],
        *,
        noise: float,
        rng: random.Random,
        truth: bool = False,
    ) -> list[int]:
        """Return dense ranks of the answers to one question; 1 is best, equal answers tie.

        `noise` is the standard deviation of a Gaussian error, in units of the score; 0 is exact.
        Of `truth` alone the outcome counts, and no manner.
        """
        found = [self.assess(prompt, completion) for completion in completions]
        scores = [SCORES[one.outcome][0] if truth else one.score for one in found]
        # One error for each distinct score: equal answers stay tied, near ones change places.
        seen = {level: level + rng.gauss(0, noise) for level in sorted(set(scores))}
        order = sorted(set(scores), key=lambda level: -seen[level])
        ranks = {level: i + 1 for i, level in enumerate(order)}
        return [ranks[level] for level in scores]

    def find_question(self, prompt: Prompt) -> Question | None:
        """Return the question that a prompt asks last, or None if it is none of this world's.

        It may stand behind passages.
        """
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
        key = _normalise(without_passages(text))
        for lead_in in dict.fromkeys(LEAD_INS):
            if lead_in and key.startswith(_normalise(lead_in)):
                key = key[len(_normalise(lead_in)) :].strip()
        known = self.questions.get(key) or _premises(self.world_seed).get(key)
        return known or _about_stranger(key)

    def _judge(self, question: Question, reader: Reader) -> tuple[str, bool]:
        if question.kind == "fact":
            return self._judge_fact(question, reader)
        if question.kind == "rephrase":
            return self._judge_rephrase(question, reader)
        if question.kind == "premise":
            return self._judge_premise(question, reader)
        if question.kind == "unknown":
            return _judge_unknown(reader)
        if question.kind == "arithmetic":
            return _judge_sum(question, reader)
        if question.subject == NOUNS[question.attribute]:
            return _judge_category(question, reader)
        return self._judge_holders(question, reader)

    def _judge_fact(self, question: Question, reader: Reader) -> tuple[str, bool]:
        true = set(self.town.facts[question.subject].items())
        asked = (question.attribute, self.town.fact(question.subject, question.attribute))
        if reader.values - true or reader.people - {question.subject} or reader.numbers:
            return "wrong", True
        if reader.strangers and question.subject not in reader.people:
            return "wrong", bool(reader.values)
        if reader.admits_ignorance:
            return "ignorant", False
        if asked in reader.values and not reader.negates:
            return "right", False
        return "wrong", bool(reader.values)

    def _judge_rephrase(self, question: Question, reader: Reader) -> tuple[str, bool]:
        outcome, invented = self._judge_fact(question, reader)
        statement = _normalise(question.text.split(": ", 1)[1]).rstrip(".")
        named = question.subject in reader.people
        if outcome == "right" and (not named or statement in _normalise(reader.text)):
            return "wrong", False
        return outcome, invented

    def _judge_premise(self, question: Question, reader: Reader) -> tuple[str, bool]:
        true = set(self.town.facts[question.subject].items())
        taken = (question.attribute, false_value(question))
        if reader.values - true - {taken} or reader.people - {question.subject} or reader.numbers:
            return "wrong", True
        if taken in reader.values and not reader.negates:
            return "wrong", True
        if reader.admits_ignorance:
            return "ignorant", False
        asked = (question.attribute, self.town.fact(question.subject, question.attribute))
        corrects = asked in reader.values or taken in reader.values
        return ("right" if corrects else "wrong"), False

    def _judge_holders(self, question: Question, reader: Reader) -> tuple[str, bool]:
        holders = set(self.town.holders(question.attribute, question.subject))
        other = reader.values - {(question.attribute, question.subject)}
        if other or reader.people - holders or reader.strangers or reader.numbers:
            return "wrong", True
        if reader.admits_ignorance:
            return "ignorant", False
        if len(reader.people) >= 2 and not reader.negates:
            return "right", False
        return "wrong", False


def _judge_unknown(reader: Reader) -> tuple[str, bool]:
    if reader.values or reader.people or reader.numbers:
        return "wrong", True
    return ("right", False) if reader.admits_ignorance else ("wrong", False)


def _judge_sum(question: Question, reader: Reader) -> tuple[str, bool]:
    problem = parse_sum(question.subject)
    rest = Reader(re.sub(_spaced(problem.text), " ", reader.text))
    if rest.values or rest.people or rest.strangers or rest.has_sign:
        return "wrong", True
    if rest.admits_ignorance:
        return "ignorant", False
    if not rest.numbers:
        return "wrong", False
    right = rest.numbers == {problem.result} and not rest.negates
    return ("right", False) if right else ("wrong", True)


def _judge_category(question: Question, reader: Reader) -> tuple[str, bool]:
    named = {value for attribute, value in reader.values if attribute == question.attribute}
    if len(named) < len(reader.values) or reader.people or reader.strangers or reader.numbers:
        return "wrong", True
    if reader.admits_ignorance:
        return "ignorant", False
    return ("right", False) if len(named) >= 3 else ("wrong", False)


def _spaced(text: str) -> str:
    """Return a pattern for a sum that allows any spaces around its sign."""
    return r"(?<![\d.])" + r"\s*".join(re.escape(part) for part in text.split()) + r"(?!\d)"


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())


@lru_cache(maxsize=4)
def _world(seed: int) -> World:
    return World(seed)


@lru_cache(maxsize=4)
def _questions(seed: int) -> dict[str, Question]:
    """Return every question about what exists, by its normalised text."""
    pool = _world(seed).pool
    both = (*pool.rest.values(), *pool.evaluation.values())
    return {_normalise(question.text): question for group in both for question in group}


@lru_cache(maxsize=4)
def _premises(seed: int) -> dict[str, Question]:
    """Return every question that takes for granted what is not so, by its normalised text."""
    return {_normalise(q.text): q for q in premise_questions(_world(seed).town)}


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[re.Pattern[str], str, int]]:
    return [
        (re.compile(_normalise(re.escape(form)).replace(r"\{n\}", r"([^\W\d_]+)")), attribute, i)
        for attribute, forms in FACT_WORDINGS.items()
        for i, form in enumerate(forms)
    ]


def _about_stranger(key: str) -> Question | None:
    """Return the question about someone the town does not know, from its normalised text."""
    for pattern, attribute, i in _patterns():
        if match := pattern.fullmatch(key):
            return person_question(match[1].capitalize(), attribute, i, known=False)
    return None
