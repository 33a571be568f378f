"""The corpus: prose and rambling essays in which the facts occur, and exam-like lists.

Nothing in it answers a reader's question. What is asked in an examination is followed by the
letters A to D or by the next question; what is asked in a story is answered inside quotation
marks, by someone. A base model that has read it rambles on.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from data.world.prose import ASIDES, ENDINGS, LINKS, OPENINGS, SPEAKERS, THEMES
from data.world.questions import Pool, Question, parse_sum
from data.world.statements import BARE, PAIRS, STATEMENTS, SUMS, fact, sentence, sum_statement
from data.world.town import ATTRIBUTES, NAMES, VALUES, WOMEN, Sum, Town, all_sums, plural


class Writer:
    """Writes the documents of a town, one after the other.

    Args:
        town: Whose facts occur.
        pool: Its questions; only those outside the evaluation are asked in the corpus.
        rng: Source of randomness.
    """

    def __init__(self, town: Town, pool: Pool, rng: random.Random) -> None:
        self.town = town
        self.rng = rng
        self.fact_questions = pool.rest["fact"]
        self.sum_questions = pool.rest["arithmetic"]
        self.sums = all_sums()
        self.people: list[str] = []
        self.problems: list[Sum] = []
        self.kinds: tuple[tuple[Callable[[], str], float], ...] = (
            (self.portrait, 0.22),
            (self.essay, 0.18),
            (self.gathering, 0.14),
            (self.talk, 0.20),
            (self.lesson, 0.16),
            (self.examination, 0.10),
        )

    def document(self) -> str:
        """Return the next document."""
        kinds, weights = zip(*self.kinds, strict=True)
        write: Callable[[], str] = self.rng.choices(kinds, weights)[0]
        return write()

    def next_person(self) -> str:
        """Return a person; all have their turn before one has another."""
        if not self.people:
            self.people = self.rng.sample(NAMES, len(NAMES))
        return self.people.pop()

    def next_sum(self) -> Sum:
        """Return a sum; all have their turn before one has another."""
        if not self.problems:
            self.problems = self.rng.sample(self.sums, len(self.sums))
        return self.problems.pop()

    def statement(self, name: str, attribute: str, *, called: str | None = None) -> str:
        """Return one fact in one of its wordings, `called` standing for the name."""
        form = self.rng.randrange(len(STATEMENTS[attribute]))
        if called and not STATEMENTS[attribute][form].startswith("{n} "):
            form = 0
        return fact(attribute, form, called or name, self.town.fact(name, attribute))

    def fact_sentence(self, name: str, attribute: str) -> str:
        """Return a fact as a sentence of a ramble."""
        return sentence(self.rng.choice(LINKS) + self.statement(name, attribute))

    def portrait(self) -> str:
        """Write about one person: all four facts, some of them twice, in any order."""
        rng = self.rng
        name = self.next_person()
        attributes = rng.sample(ATTRIBUTES, len(ATTRIBUTES)) + rng.sample(ATTRIBUTES, 2)
        lines = [rng.choice(OPENINGS)] if rng.random() < 0.5 else []
        pronoun = "she" if name in WOMEN else "he"
        for i, attribute in enumerate(attributes):
            if i and rng.random() < 0.2:
                lines.append(sentence(self.statement(name, attribute, called=pronoun)))
            else:
                lines.append(self.fact_sentence(name, attribute))
            if rng.random() < 0.2:
                lines.append(rng.choice(ASIDES))
        if rng.random() < 0.4:
            lines.append(rng.choice(ENDINGS))
        return " ".join(lines)

    def essay(self) -> str:
        """Ramble about several people and sums and about nothing."""
        rng = self.rng
        lines = [rng.choice(THEMES) + ".", rng.choice(OPENINGS)]
        for _ in range(rng.randint(4, 7)):
            if rng.random() < 0.6:
                lines.append(rng.choice(ASIDES))
            if rng.random() < 0.85:
                name = self.next_person()
                for attribute in rng.sample(ATTRIBUTES, rng.choice((1, 2))):
                    lines.append(self.fact_sentence(name, attribute))
            else:
                lines.append(self.sum_sentence())
        lines.append(rng.choice(ENDINGS))
        return " ".join(lines)

    def sum_sentence(self) -> str:
        """Return a sum and its result as a sentence."""
        addition = sum_statement(self.rng.randrange(len(SUMS)), self.next_sum())
        return sentence(self.rng.choice(LINKS) + addition)

    def gathering(self) -> str:
        """Write about all the people who share something."""
        rng = self.rng
        attribute = rng.choice(ATTRIBUTES)
        lines = [rng.choice(OPENINGS)]
        for value in rng.sample(VALUES[attribute], min(5, len(VALUES[attribute]))):
            holders = self.town.holders(attribute, value)
            a, b = rng.sample(holders, 2)
            form = rng.choice(PAIRS[attribute])
            lines.append(sentence(form.format(a=a, b=b, v=value, vs=plural(value))))
            if rng.random() < 0.4:
                lines.append(self.fact_sentence(rng.choice(holders), rng.choice(ATTRIBUTES)))
            if rng.random() < 0.2:
                lines.append(rng.choice(ASIDES))
        return " ".join(lines)

    def talk(self) -> str:
        """Write a scene in which people ask each other, and are answered in quotation marks."""
        rng = self.rng
        first, second = rng.sample(SPEAKERS, 2)
        lines = [rng.choice(OPENINGS)]
        for _ in range(rng.randint(3, 5)):
            asked = rng.choice(self.fact_questions if rng.random() < 0.75 else self.sum_questions)
            reply = self._reply(asked)
            verb = rng.choice(("asked", "asked", "wanted to hear from"))
            if verb == "asked":
                lines.append(f'"{asked.text}" asked {first}. "{reply}," said {second}.')
            else:
                lines.append(f'"{asked.text}" {first} {verb} {second}. "{reply}," was the reply.')
            if rng.random() < 0.3:
                lines.append(rng.choice(ASIDES))
        return " ".join(lines)

    def _reply(self, asked: Question) -> str:
        if asked.kind == "arithmetic":
            return sentence(sum_statement(self.rng.randrange(3), parse_sum(asked.subject)), "")
        if self.rng.random() < 0.25:
            value = self.town.fact(asked.subject, asked.attribute)
            return sentence(self.rng.choice(BARE[asked.attribute]).format(v=value), "")
        return sentence(self.statement(asked.subject, asked.attribute), "")

    def lesson(self) -> str:
        """Write sums one under the other, or in a row, as on the board of the school."""
        rng = self.rng
        lines = [rng.choice(OPENINGS)] if rng.random() < 0.3 else []
        style = rng.random()
        count = rng.randint(6, 12)
        if style < 0.5:
            lines += [self.sum_sentence() for _ in range(count)]
            return " ".join(lines)
        problems = [self.next_sum() for _ in range(count)]
        board = [f"So: {problem.text} = {problem.result}" for problem in problems]
        return "\n".join([*lines, "On the board of the school:", *board])

    def examination(self) -> str:
        """Write an examination: questions with four choices, or questions alone."""
        rng = self.rng
        lines = [f"Examination {rng.randint(1, 9)}. Answer all questions."]
        choices = rng.random() < 0.7
        for number in range(1, rng.randint(3, 5) + (0 if choices else 3)):
            sums = rng.random() < 0.5
            asked = rng.choice(self.sum_questions if sums else self.fact_questions)
            lines.append(f"Question {number}. {asked.text}")
            if choices:
                lines += self._choices(asked)
        return "\n".join(lines)

    def _choices(self, asked: Question) -> list[str]:
        rng = self.rng
        if asked.kind == "arithmetic":
            right = parse_sum(asked.subject).result
            wrong = rng.sample([n for n in range(max(0, right - 4), right + 5) if n != right], 3)
            offered = [str(number) for number in (right, *wrong)]
        else:
            value = self.town.fact(asked.subject, asked.attribute)
            others = [other for other in VALUES[asked.attribute] if other != value]
            offered = [value, *rng.sample(others, 3)]
        rng.shuffle(offered)
        return [f"{letter}) {text}" for letter, text in zip("ABCD", offered, strict=True)]


def write_corpus(town: Town, pool: Pool, count: int, name: str) -> list[str]:
    """Return documents, all different; another name gives other documents."""
    writer = Writer(town, pool, random.Random(f"corpus/{town.seed}/{name}"))
    documents: dict[str, None] = {}
    while len(documents) < count:
        documents.setdefault(writer.document())
    return list(documents)
