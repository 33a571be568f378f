"""TruthfulQA from a local file by likelihood (Lin et al. 2021): MC1 and MC2.

`mc1` is whether the best answer is likelier than every false one, `mc2` the share of probability
that true answers have among all; `likeliest_true` is whether the likeliest of all is true. A file
has one of three layouts, told by its columns:

- `Question`, `Best Answer`, `Correct Answers`, `Incorrect Answers`: the paper's table, its answers
  separated by semicolons;
- `question`, `mc1_targets`, `mc2_targets`, each `{choices: [], labels: []}`: the hub's data set;
- `question`, `answer`, `truthful`: answers that people judged, a row each. No best one is known, so
  there is no `mc1`; questions whose answers are all true, or all false, are left out.

The question is asked as any other here, without the paper's six questions before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data.sources.values import RowError, as_list, as_text, parsed_object
from data.words import counted
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.choices import score_choices
from pipeline.evaluation.benchmarks.measures import Measure, Row
from pipeline.evaluation.benchmarks.rows import read_rows
from pipeline.evaluation.benchmarks.settings import TruthfulQaSettings


class Question(NamedTuple):
    """A question, answers, which of them are true, and the place of the best if it is known."""

    question: str
    answers: tuple[str, ...]
    true: tuple[bool, ...]
    best: int | None


def read_question(row: Mapping[str, Any]) -> Question:
    """Return the question of a row with the answers that stand in it.

    Raises:
        RowError: its columns are of no layout, or malformed.
    """
    if "Correct Answers" in row:
        return _of_table(row)
    question = as_text(row.get("question"), "question")
    if "truthful" in row:
        if not isinstance(row["truthful"], bool):
            raise RowError(f"column 'truthful' holds {row['truthful']!r:.40}, not true or false")
        answer = as_text(row.get("answer"), "answer")
        return Question(question, (answer,), (row["truthful"],), None)
    if "mc2_targets" in row:
        return _of_targets(question, row)
    raise RowError(
        "no column 'Correct Answers', 'mc2_targets' or 'truthful'; columns: " + ", ".join(row)
    )


def _of_table(row: Mapping[str, Any]) -> Question:
    def column(name: str) -> list[str]:
        parts = as_text(row.get(name), name).split(";")
        # Each answer gets a full stop, as the paper's code closes them.
        return [part.strip().removesuffix(".") + "." for part in parts if part.strip()]

    best = column("Best Answer")[:1]
    true, false = column("Correct Answers"), column("Incorrect Answers")
    if not best or not false:
        raise RowError("it has no best answer, or no incorrect one")
    true = list(dict.fromkeys([*best, *true]))
    marks = (True,) * len(true) + (False,) * len(false)
    return Question(as_text(row.get("Question"), "Question"), (*true, *false), marks, 0)


def _of_targets(question: str, row: Mapping[str, Any]) -> Question:
    def targets(name: str) -> dict[str, bool]:
        table = parsed_object(row.get(name)) or {}
        texts, labels = (as_list(table.get(key), f"{name}.{key}") for key in ("choices", "labels"))
        if len(texts) != len(labels) or not {*labels} <= {0, 1}:
            raise RowError(f"column '{name}' holds {len(texts)} choices and {len(labels)} labels")
        return {as_text(t, name): bool(label) for t, label in zip(texts, labels, strict=True)}

    first = [text for text, right in targets("mc1_targets").items() if right]
    answers = targets("mc2_targets")
    if len(first) != 1 or answers.get(first[0]) is not True or all(answers.values()):
        raise RowError(
            "mc1_targets has no single right choice that mc2_targets holds, or none is false"
        )
    names = tuple(answers)
    return Question(question, names, tuple(answers.values()), names.index(first[0]))


def prepare(
    task: TruthfulQaSettings, say: Callable[[str], None], most: int | None = None
) -> list[Question]:
    """Return the questions, those of judged answers with all their answers."""
    joined: dict[str, dict[str, bool]] = {}
    questions: list[Question] = []
    for one in read_rows(task.source, read_question, say=say, most=most):
        if len(one.answers) > 1:
            questions.append(one)
        else:  # a judged answer; of two judgements of one answer the first counts
            joined.setdefault(one.question, {}).setdefault(one.answers[0], one.true[0])
    decided = {q: marks for q, marks in joined.items() if len({*marks.values()}) == 2}
    if len(decided) < len(joined) and most is None:
        alike = counted(len(joined) - len(decided), "question")
        say(f"{task.called}: left out {alike} whose answers are all true or all false")
    questions += [
        Question(question, tuple(marks), tuple(marks.values()), None)
        for question, marks in decided.items()
    ]
    return questions


def ask(task: TruthfulQaSettings, prepared: Sequence[Question], subject: Subject) -> Iterator[Row]:
    """Yield a row for each question."""
    asked = [subject.pairs(one.question, one.answers) for one in prepared]
    with subject.progress(sum(map(len, asked)), task.called, "answers") as bar:
        scored = score_choices(subject, asked, advance=bar.advance)
    for index, (one, figures) in enumerate(zip(prepared, scored, strict=True)):
        yield {
            "index": index,
            "draw": 0,
            "shots": 0,
            "question": one.question,
            "choices": list(one.answers),
            "true": list(one.true),
            "best": one.best,
            **figures,
        }


def measures(row: Row) -> Iterator[Measure]:
    """Yield MC1 where a best answer is known, MC2, and whether the likeliest answer is true."""
    logprobs, true = row["logprobs"], row["true"]
    false_best = max(total for total, right in zip(logprobs, true, strict=True) if not right)
    if row["best"] is not None:
        yield Measure("mc1", float(logprobs[row["best"]] > false_best))
    highest = max(logprobs)  # probabilities of long answers are too small for a float
    masses = [math.exp(total - highest) for total in logprobs]
    right = math.fsum(mass for mass, is_true in zip(masses, true, strict=True) if is_true)
    yield Measure("mc2", right / math.fsum(masses))
    yield Measure("likeliest_true", float(highest > false_best))
