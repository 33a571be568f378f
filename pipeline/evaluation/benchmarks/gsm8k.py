"""Grade-school mathematics from a local file (Cobbe et al. 2021), worked out step by step.

An answer is read in three ways side by side: `strict` (behind `#### `), `flexible` (lm-eval's last
number), and `person` (`numbers.read_number`). With several samples a question, `maj@k` is the
accuracy of their majority (self-consistency), unbiased for each k up to their number. Of answers
with calculator's marks it is told how many have a slip, a result that is not the calculator's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from data.sources.values import RowError, as_text
from data.text.prompting import Example, drawn
from pipeline.evaluation.benchmarks.answers import write_answers
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.majority import majority_right
from pipeline.evaluation.benchmarks.measures import Measure, Row
from pipeline.evaluation.benchmarks.numbers import read_flexible, read_number, read_strict
from pipeline.evaluation.benchmarks.rows import read_with_examples
from pipeline.evaluation.benchmarks.settings import Gsm8kSettings
from pipeline.generation.generate import Sampling
from pipeline.generation.tools.marks import slips

_MARKS = re.compile(r"<<[^<>]*>>")
"""The calculator's marks in the worked answers, which nobody would write."""
UNTIL = ("Question:", "</s>", "<|im_end|>")
"""What ends an answer in plain text, as in lm-eval's task."""


class Problem(NamedTuple):
    """A question and its worked answer."""

    question: str
    answer: str


def read_problem(row: Mapping[str, Any]) -> Problem:
    """Return the problem of a row: `question`, and `answer` that ends in the number.

    Raises:
        RowError: a column is missing, or no number can be read from the answer.
    """
    for column in ("question", "answer"):
        if row.get(column) is None:
            raise RowError(f"no column '{column}'; columns: {', '.join(row)}")
    answer = row["answer"]
    answer = str(answer) if type(answer) in (int, float) else as_text(answer, "answer")
    if read_number(answer) is None:
        raise RowError(f"answer {answer[-60:]!r} holds no number")
    return Problem(as_text(row["question"], "question"), answer)


def prepare(
    task: Gsm8kSettings, say: Callable[[str], None], most: int | None = None
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems, and those that examples are drawn from."""
    return read_with_examples(task.source, task.examples, read_problem, say=say, most=most)


def ask(
    task: Gsm8kSettings, prepared: tuple[list[Problem], list[Problem]], subject: Subject
) -> Iterator[Row]:
    """Yield a row for each problem and draw of examples."""
    problems, pool = prepared
    sampling = Sampling(max_new_tokens=task.max_new_tokens, temperature=task.temperature)
    for draw in range(task.draws):
        before = drawn(pool, task.shots, draw=draw, seed=subject.seed)
        prompts = [
            subject.context(
                one.question if task.shots else f"{one.question}\n{task.instruction}",
                [Example(e.question, _MARKS.sub("", e.answer)) for e in before(one)],
            )
            for one in problems
        ]
        all_answers = write_answers(
            subject,
            [prompt for prompt in prompts for _ in range(task.samples)],
            sampling=sampling,
            label=task.called,
            seed=subject.seed + draw,
            until=UNTIL if subject.plain else (),
        )
        marked, answers = any("<<" in one.text for one in all_answers), iter(all_answers)
        for index, (one, prompt) in enumerate(zip(problems, prompts, strict=True)):
            written = [next(answers) for _ in range(task.samples)]
            yield {
                "index": index,
                "draw": draw,
                "shots": task.shots,
                "question": one.question,
                "answer": one.answer,
                "responses": [each.text for each in written],
                "ended": [each.ended for each in written],
                "readings": readings(one.answer, [each.text for each in written]),
                **({"slips": [slips(each.text) for each in written]} if marked else {}),
                "first_tokens": subject.opening(prompt),
            }


def readings(answer: str, responses: list[str]) -> dict[str, dict[str, Any]]:
    """Return by way of reading the right answer and what each response gives, as text."""

    def person(text: str) -> str | None:
        number = read_number(text)
        return None if number is None else str(number)

    # The worked answer has its number behind `#### `; a bare number is read by the flexible one.
    ways = {
        "strict": (read_strict, read_strict(answer) or read_flexible(answer)),
        "flexible": (read_flexible, read_strict(answer) or read_flexible(answer)),
        "person": (person, person(answer)),
    }
    return {
        name: {"right": right, "given": [read(text) for text in responses]}
        for name, (read, right) in ways.items()
    }


def measures(row: Row) -> Iterator[Measure]:
    """Yield the share of right answers by each reading, and of right majorities of 2, 4, 8 ...

    Where some answers have calculator's marks, also the share of all that have one which can be
    read, and the share of all that have a wrong one.
    """
    for name, reading in row["readings"].items():
        given = reading["given"]
        votes = 1
        while votes <= len(given):
            metric = "accuracy" if votes == 1 else f"maj@{votes}"
            yield Measure(metric, majority_right(given, reading["right"], votes), name)
            votes *= 2
        yield Measure("read", sum(one is not None for one in given) / len(given), name)
    if "slips" in row:
        found = row["slips"]
        yield Measure("marked", sum(read > 0 for _, read in found) / len(found))
        yield Measure("slips", sum(wrong > 0 for wrong, _ in found) / len(found))
