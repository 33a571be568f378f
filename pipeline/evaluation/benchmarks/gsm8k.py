"""Grade-school mathematics from a local file (Cobbe et al. 2021), worked out step by step.

An answer is read in three ways side by side: `strict` (behind `#### `), `flexible` (lm-eval's last
number), and `person` (`numbers.read_number`). With several samples a question, `maj@k` is the
accuracy of their majority (self-consistency), unbiased for each k up to their number. Of answers
with calculator's marks it is told how many have a slip, a result that is not the calculator's.
Asked in both ways (Wei et al. 2022, Kojima et al. 2022), the answers without steps are in `direct`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from data.sources.values import RowError, as_text
from data.text.prompting import Example, drawn
from pipeline.evaluation.benchmarks.answers import write_answers
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.majority import majority_right
from pipeline.evaluation.benchmarks.measures import Measure, Row
from pipeline.evaluation.benchmarks.numbers import read_flexible, read_number, read_strict
from pipeline.evaluation.benchmarks.rows import read_with_examples
from pipeline.evaluation.benchmarks.settings import Gsm8kSettings, WorkedSettings
from pipeline.generation.generate import Sampling
from pipeline.generation.tools.marks import slips

_MARKS = re.compile(r"<<[^<>]*>>")
"""The calculator's marks in the worked answers, which nobody would write."""
READINGS = ("strict", "flexible", "person")
UNTIL = ("Question:", "</s>", "<|im_end|>")
"""What ends an answer in plain text, as in lm-eval's task."""


class Problem(NamedTuple):
    """A question, its worked answer, and what says the result alone."""

    question: str
    answer: str
    result: str


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
    number, mark = read_number(answer), answer.rfind("####")
    if number is None:
        raise RowError(f"answer {answer[-60:]!r} holds no number")
    result = answer[mark:] if mark >= 0 else str(number)
    return Problem(as_text(row["question"], "question"), answer, result)


def prepare(
    task: Gsm8kSettings, say: Callable[[str], None], most: int | None = None
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems, and those that examples are drawn from."""
    return read_with_examples(task.source, task.examples, read_problem, say=say, most=most)


def ask(
    task: WorkedSettings,
    prepared: tuple[list[Problem], list[Problem]],
    subject: Subject,
    *,
    read: Sequence[str] = READINGS,
) -> Iterator[Row]:
    """Yield a row for each problem and draw of examples; `read` are the readings told."""
    problems, pool = prepared
    for draw in range(task.draws):
        before = drawn(pool, task.shots, draw=draw, seed=subject.seed)
        shown = [before(one) for one in problems]
        first, *rest = (
            _answered(task, problems, shown, subject, steps=steps, draw=draw, read=read)
            for steps in task.ways
        )
        for index, one in enumerate(problems):
            yield {
                "index": index,
                "draw": draw,
                "shots": task.shots,
                "question": one.question,
                "answer": one.answer,
                **first[index],
                **({"direct": rest[0][index]} if rest else {}),
            }


def _answered(
    task: WorkedSettings,
    problems: Sequence[Problem],
    shown: Sequence[Sequence[Problem]],
    subject: Subject,
    *,
    steps: bool,
    draw: int,
    read: Sequence[str],
) -> list[dict[str, Any]]:
    """Return what is kept of the answers to each problem, asked with steps or without."""
    instruction = task.instruction if steps else task.direct_instruction
    prompts = [
        subject.context(
            one.question if task.shots or not instruction else f"{one.question}\n{instruction}",
            [Example(e.question, _MARKS.sub("", e.answer if steps else e.result)) for e in before],
        )
        for one, before in zip(problems, shown, strict=True)
    ]
    answers = write_answers(
        subject,
        [prompt for prompt in prompts for _ in range(task.samples)],
        sampling=Sampling(max_new_tokens=task.max_new_tokens, temperature=task.temperature),
        label=task.called,
        seed=subject.seed + draw,
        until=UNTIL if subject.plain else (),
    )
    marked, left, kept = any("<<" in one.text for one in answers), iter(answers), []
    for one, prompt in zip(problems, prompts, strict=True):
        written = [next(left) for _ in range(task.samples)]
        texts = [each.text for each in written]
        found = readings(one.answer, texts)
        kept.append({
            "responses": texts,
            "ended": [each.ended for each in written],
            **({} if subject.tools is None else {"calls": [each.calls for each in written]}),
            "readings": {name: found[name] for name in read},
            **({"slips": [slips(text) for text in texts]} if marked else {}),
            "first_tokens": subject.opening(prompt),
        })  # fmt: skip
    return kept


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

    `majority_gain` is what the largest of these gains over one answer, `steps_gain` what steps gain
    over the answer alone, whose figures are called `direct_...`; both over the same questions.
    Where some answers have calculator's marks, also the share of all that have one which can be
    read, and the share of all that have a wrong one.
    """
    yield from _measures(row)
    if "direct" in row:
        direct = {(one.metric, one.reading): one for one in _measures(row["direct"])}
        for one in direct.values():
            yield one._replace(metric=f"direct_{one.metric}")
        for one in _measures(row):
            if one.metric == "accuracy":
                other = direct[one.metric, one.reading]
                yield Measure("steps_gain", one.value - other.value, one.reading)


def _measures(row: Row) -> Iterator[Measure]:
    for name, reading in row["readings"].items():
        given = reading["given"]
        right = partial(majority_right, given, reading["right"])
        votes = [2**power for power in range(len(given).bit_length())]
        for count in votes:
            yield Measure("accuracy" if count == 1 else f"maj@{count}", right(count), name)
        if len(votes) > 1:
            yield Measure("majority_gain", right(votes[-1]) - right(1), name)
        yield Measure("read", sum(one is not None for one in given) / len(given), name)
    if "slips" in row:
        found = row["slips"]
        yield Measure("marked", sum(read > 0 for _, read in found) / len(found))
        yield Measure("slips", sum(wrong > 0 for wrong, _ in found) / len(found))
