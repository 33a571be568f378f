"""Multiple choice answered by likelihood: the choice that a checkpoint finds likeliest is its own.

Each choice's text is scored behind the question; `accuracy` takes the largest log-probability,
`accuracy_per_byte` divides it by the choice's UTF-8 bytes, `accuracy_per_token` by its tokens, so
that long choices are not at a disadvantage.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data.sources.values import RowError, as_list, as_text, parsed_object
from data.text.prompting import QUESTIONS, Example, Form, drawn
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.loglikelihood import Pair, loglikelihoods, too_long
from pipeline.evaluation.benchmarks.measures import CHANCE, Measure, Row
from pipeline.evaluation.benchmarks.rows import read_with_examples
from pipeline.evaluation.benchmarks.settings import ChoicesSettings, ShotsSettings


class Question(NamedTuple):
    """A question, its choices, and which of them is right."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_question(row: Mapping[str, Any]) -> Question:
    """Return the question of a row.

    Raises:
        RowError: a column is missing or malformed, or the answer is none of the choices.
    """
    for column in ("question", "choices", "answer"):
        if row.get(column) is None:
            raise RowError(f"no column '{column}'; columns: {', '.join(row)}")
    texts, labels = row["choices"], []
    if (table := parsed_object(texts)) is not None:
        texts, labels = table.get("text"), as_list(table.get("label", []), "choices.label")
    choices = [as_text(choice, "choices") for choice in as_list(texts, "choices")]
    if len(choices) < 2 or not all(choices):
        raise RowError(f"column 'choices' holds {len(choices)} texts; 2 or more make a choice")
    return Question(
        as_text(row["question"], "question"),
        tuple(choices),
        _place(row["answer"], choices, [str(label) for label in labels]),
    )


def _place(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int:
    """Return which choice an answer names: by text, label, letter or number from 0."""
    letters = string.ascii_uppercase[: len(choices)]
    if isinstance(answer, str):
        for names in (choices, labels, letters):
            if answer in names and len(answer) > 0:
                return list(names).index(answer)
    number = int(answer) if isinstance(answer, str) and answer.isdecimal() else answer
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(choices):
        return number
    raise RowError(
        f"answer {answer!r:.60} is none of the {len(choices)} choices; give a text of them, a "
        f"label, a letter from A, or a number from 0"
    )


def prepare(
    task: ChoicesSettings, say: Callable[[str], None], most: int | None = None
) -> tuple[list[Question], list[Question]]:
    """Return the questions, and those that examples are drawn from."""
    return read_with_examples(task.source, task.examples, read_question, say=say, most=most)


def ask(
    task: ShotsSettings,
    prepared: tuple[list[Question], list[Question]],
    subject: Subject,
    form: Form = QUESTIONS,
) -> Iterator[Row]:
    """Yield a row for each question and draw."""
    questions, pool = prepared
    with subject.progress(
        task.draws * sum(len(one.choices) for one in questions), task.called, "choices"
    ) as bar:
        for draw in range(task.draws):
            before = drawn(pool, task.shots, draw=draw, seed=subject.seed)
            asked = [
                subject.pairs(
                    one.question,
                    one.choices,
                    [Example(e.question, e.choices[e.answer]) for e in before(one)],
                    form,
                )
                for one in questions
            ]
            scored = score_choices(subject, asked, advance=bar.advance)
            for index, (one, figures) in enumerate(zip(questions, scored, strict=True)):
                yield {
                    "index": index,
                    "draw": draw,
                    "shots": task.shots,
                    "question": one.question,
                    "choices": list(one.choices),
                    "answer": one.answer,
                    **figures,
                    "bytes": [len(choice.encode()) for choice in one.choices],
                }


def score_choices(
    subject: Subject, asked: Sequence[Sequence[Pair]], *, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Return of each question its choices' log-probabilities and tokens, and how it was begun."""
    pairs = [pair for one in asked for pair in one]
    if lost := too_long(subject.model, pairs):
        subject.say(
            f"  {subject.name}: {lost} of {len(pairs)} choices are longer than the context with "
            "their question; the beginning of it was left out"
        )
    scored = iter(
        loglikelihoods(subject.model, pairs, batch_size=subject.batch_size, advance=advance)
    )
    found = []
    for one in asked:
        likelihoods = [next(scored) for _ in one]
        found.append(
            {
                "logprobs": [each.logprob for each in likelihoods],
                "tokens": [each.tokens for each in likelihoods],
                "first_tokens": subject.opening(one[0].context),
            }
        )
    return found


def measures(row: Row) -> Iterator[Measure]:
    """Yield whether the likeliest choice is the right one, by each way to compare them."""
    ones = [1] * len(row["choices"])
    for metric, sizes in (
        ("accuracy", ones),
        ("accuracy_per_byte", row["bytes"]),
        ("accuracy_per_token", row["tokens"]),
    ):
        rates = [total / size for total, size in zip(row["logprobs"], sizes, strict=True)]
        yield Measure(metric, float(rates.index(max(rates)) == row["answer"]))
    yield Measure(CHANCE, 1 / len(ones))
