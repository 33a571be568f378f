"""Sums of two steps of the embedded world, asked step by step or for the answer alone.

The numbers of a question are together in no part that is learned; each step alone is. The answer is
the number behind the last "answer is", else the last number (`numbers.read_number`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice

from data.world.sums import ROWS, questions
from pipeline.evaluation.benchmarks import gsm8k
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.gsm8k import Problem
from pipeline.evaluation.benchmarks.measures import Row
from pipeline.evaluation.benchmarks.settings import WorldSumsSettings


def prepare(
    task: WorldSumsSettings, say: Callable[[str], None], most: int | None = None
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems held out, and those learned, which examples are drawn from."""
    asked = min(task.limit or sys.maxsize, ROWS["sums_heldout"])
    held, learned = (
        [
            Problem(question, one.worked, one.direct)
            for question, one in islice(questions(task.world_seed, held=side), most or count)
        ]
        for side, count in ((True, asked), (False, ROWS["sums"] if task.shots else 0))
    )
    return held, learned


def ask(
    task: WorldSumsSettings, prepared: tuple[list[Problem], list[Problem]], subject: Subject
) -> Iterator[Row]:
    """Yield a row for each problem and draw of examples."""
    return gsm8k.ask(task, prepared, subject, read=("person",))
