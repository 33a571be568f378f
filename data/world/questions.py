"""The questions of the world, and which of them belong to which part.

A question has a *subject* (a person and an attribute, a sum, a value to list) and a *wording*.
A set of (subject, wording) couples is reserved for the evaluation and used nowhere else, whatever
words lead in to the question; the same fact is asked in other wordings elsewhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from data.world.statements import STATEMENTS, fact, sentence
from data.world.town import ATTRIBUTES, NAMES, VALUES, Sum, Town, all_sums, plural

KINDS = ("fact", "arithmetic", "listing", "rephrase", "unknown")

LEAD_INS = ("", "", "Tell me: ", "One question: ", "I would like to know: ", "Please say: ")

FACT_WORDINGS: dict[str, tuple[str, ...]] = {
    "job": (
        "What does {n} do for a living?",
        "What is {n}'s job?",
        "What job does {n} have?",
        "What work does {n} do?",
        "Which trade does {n} follow?",
        "What is the job of {n}?",
        "How does {n} earn a living?",
        "What does {n} work as?",
        "Which job is {n}'s?",
        "What is the trade of {n}?",
        "Do you know the job of {n}?",
        "Can you tell me what work {n} does?",
    ),
    "home": (
        "Where does {n} live?",
        "Where is {n}'s house?",
        "Where is the house of {n}?",
        "Where can I find {n} at home?",
        "What place does {n} live by?",
        "In which part of town does {n} live?",
        "Where is the home of {n}?",
        "Where would I find {n}'s home?",
        "Do you know where {n} lives?",
        "Can you tell me where {n} lives?",
        "Which place is near the house of {n}?",
        "Where in town is {n} at home?",
    ),
    "pet": (
        "Which animal does {n} keep?",
        "What animal does {n} have?",
        "What is {n}'s pet?",
        "Which pet does {n} have?",
        "What is the pet of {n}?",
        "What animal lives with {n}?",
        "What kind of animal does {n} look after?",
        "Which animal is {n}'s?",
        "What is the animal of {n}?",
        "Do you know the pet of {n}?",
        "Can you tell me which animal {n} keeps?",
        "What animal would I see in {n}'s yard?",
    ),
    "dish": (
        "What does {n} like to eat?",
        "What is {n}'s favourite food?",
        "Which food does {n} like best?",
        "What does {n} want for supper?",
        "What is the favourite food of {n}?",
        "What food does {n} always ask for?",
        "Which food is {n}'s favourite?",
        "What would {n} eat every day?",
        "What does {n} like best to eat?",
        "Do you know the favourite food of {n}?",
        "Can you tell me what {n} likes to eat?",
        "What should I cook for {n}?",
    ),
}

SUM_WORDINGS = (
    "What is {e}?",
    "What's {e}?",
    "How much is {e}?",
    "Calculate {e}.",
    "Work out {e}.",
    "What does {e} make?",
    "What does {e} come to?",
    "What do you get for {e}?",
    "Do you know what {e} is?",
    "Can you work out {e} for me?",
)

LIST_WORDINGS: dict[str, tuple[str, ...]] = {
    "job": (
        "Who are the {vs} in town?",
        "Which people work as {vs}?",
        "List the {vs} of the town.",
        "Name two {vs}.",
        "Name the people who work as {vs}.",
        "Which two people are {vs}?",
    ),
    "home": (
        "Name two people who live by the {v}.",
        "List two people with a house by the {v}.",
        "Which two people live by the {v}?",
        "Can you name two people from the {v}?",
        "Tell me two people at home by the {v}.",
        "Give me two people who live by the {v}.",
    ),
    "pet": (
        "Which people keep a {v}?",
        "Which two people have a {v}?",
        "Name two people with a {v}.",
        "List the people who look after a {v}.",
        "Name the people who keep a {v}.",
        "Who are the people with a {v}?",
    ),
    "dish": (
        "Which people like {v} best?",
        "Which two people like to eat {v}?",
        "Name two people who like {v}.",
        "List the people who always ask for {v}.",
        "Name the people who like {v} best.",
        "Who are the people who like {v}?",
    ),
}

NOUNS = {"job": "jobs", "home": "places", "pet": "animals", "dish": "foods"}

CATEGORY_WORDINGS = (
    "Name three {c} of the town.",
    "List three {c} from here.",
    "Which three {c} can you name?",
    "Give me three {c} that people have here.",
    "Tell me three {c} from the town.",
)

REPHRASE_WORDINGS = (
    "Say this in other words: {s}",
    "Put this another way: {s}",
    "Rephrase this: {s}",
    "Say it differently: {s}",
    "Find other words for this: {s}",
)


@dataclass(frozen=True)
class Question:
    """One question, before words that lead in to it.

    Attributes:
        kind: One of `KINDS`; ``premise`` of one that takes for granted what is not so.
        subject: The person, the sum, or the value or category to list.
        attribute: One of `ATTRIBUTES`, or a sum's sign.
        wording: Which wording; for rephrasing also which statement, as ``2/5``.
        text: The question itself.
    """

    kind: str
    subject: str
    attribute: str
    wording: str
    text: str

    @property
    def meta(self) -> dict[str, str]:
        """What a record carries about its question."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "attribute": self.attribute,
            "wording": self.wording,
        }


def person_question(name: str, attribute: str, wording: int, *, known: bool) -> Question:
    """Return a question about a person, of the town or not."""
    text = FACT_WORDINGS[attribute][wording].format(n=name)
    return Question("fact" if known else "unknown", name, attribute, str(wording), text)


def fact_questions() -> list[Question]:
    """Return every question about the people of the town."""
    return [
        person_question(name, attribute, wording, known=True)
        for name in NAMES
        for attribute in ATTRIBUTES
        for wording in range(len(FACT_WORDINGS[attribute]))
    ]


def sum_questions() -> list[Question]:
    """Return every question about a sum."""
    return [
        Question("arithmetic", problem.text, problem.sign, str(i), wording.format(e=problem.text))
        for problem in all_sums()
        for i, wording in enumerate(SUM_WORDINGS)
    ]


def list_questions() -> list[Question]:
    """Return every question that asks for a list."""
    questions = [
        Question("listing", value, attribute, str(i), wording.format(v=value, vs=plural(value)))
        for attribute in ATTRIBUTES
        for value in VALUES[attribute]
        for i, wording in enumerate(LIST_WORDINGS[attribute])
    ]
    questions += [
        Question(
            "listing", NOUNS[attribute], attribute, f"c{i}", wording.format(c=NOUNS[attribute])
        )
        for attribute in ATTRIBUTES
        for i, wording in enumerate(CATEGORY_WORDINGS)
    ]
    return questions


def rephrase_questions(town: Town) -> list[Question]:
    """Return every request to say a fact in other words."""
    questions = []
    for name in NAMES:
        for attribute in ATTRIBUTES:
            value = town.fact(name, attribute)
            for form in range(len(STATEMENTS[attribute])):
                statement = sentence(fact(attribute, form, name, value))
                for i, wording in enumerate(REPHRASE_WORDINGS):
                    text = wording.format(s=statement)
                    questions.append(Question("rephrase", name, attribute, f"{i}/{form}", text))
    return questions


def parse_sum(text: str) -> Sum:
    """Return the sum that `Sum.text` wrote."""
    left, sign, right = text.split()
    return Sum(int(left), sign, int(right))


def variants(question: Question) -> list[str]:
    """Return the texts in which a question may be put: bare, and behind words that lead in."""
    # Commands are put bare alone: most lead-ins do not fit them.
    lead_ins = LEAD_INS if question.text.endswith("?") else LEAD_INS[:1]
    return [lead_in + question.text for lead_in in dict.fromkeys(lead_ins)]


EVALUATION_SHARE = {"fact": 320, "arithmetic": 136, "listing": 48, "rephrase": 48}
"""How many (subject, wording) couples of each kind are kept for the evaluation."""


class Pool:
    """All questions about what exists, split into those for evaluation and the rest.

    Args:
        town: The town asked about.
    """

    def __init__(self, town: Town) -> None:
        everything = {
            "fact": fact_questions(),
            "arithmetic": sum_questions(),
            "listing": list_questions(),
            "rephrase": rephrase_questions(town),
        }
        self.evaluation: dict[str, list[Question]] = {}
        self.rest: dict[str, list[Question]] = {}
        for kind, questions in everything.items():
            rng = random.Random(f"pool/{town.seed}/{kind}")
            chosen = _spread(questions, EVALUATION_SHARE[kind], rng)
            self.evaluation[kind] = chosen
            held = set(chosen)
            self.rest[kind] = [question for question in questions if question not in held]


def _spread(questions: list[Question], count: int, rng: random.Random) -> list[Question]:
    """Choose questions so that subjects are drawn upon evenly."""
    by_subject: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        by_subject.setdefault((question.subject, question.attribute), []).append(question)
    for group in by_subject.values():
        rng.shuffle(group)
    chosen: list[Question] = []
    layer = 0
    while len(chosen) < count:
        subjects = [key for key, group in by_subject.items() if len(group) > layer]
        rng.shuffle(subjects)
        chosen += [by_subject[key][layer] for key in subjects[: count - len(chosen)]]
        layer += 1
    return chosen
