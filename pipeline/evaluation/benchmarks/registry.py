"""The benchmarks by the kind of their tasks: what each asks, and what its rows are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.evaluation.benchmarks import (
    choices,
    gsm8k,
    lm_eval_task,
    truthfulqa,
    world_facts,
    world_lists,
    world_sums,
)
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.measures import Measure, Row


class Benchmark(NamedTuple):
    """One kind of task.

    Attributes:
        prepare: reads what is asked, once for all checkpoints: (settings, say, most rows or None).
        ask: asks it of a checkpoint: (settings, what was read, subject); yields rows.
        measures: makes numbers of a row.
    """

    prepare: Callable[..., Any]
    ask: Callable[[Any, Any, Subject], Iterator[Row]]
    measures: Callable[[Row], Iterator[Measure]]


BENCHMARKS: Mapping[str, Benchmark] = {
    "choices": Benchmark(choices.prepare, choices.ask, choices.measures),
    "truthfulqa": Benchmark(truthfulqa.prepare, truthfulqa.ask, truthfulqa.measures),
    "gsm8k": Benchmark(gsm8k.prepare, gsm8k.ask, gsm8k.measures),
    "world_facts": Benchmark(world_facts.prepare, world_facts.ask, world_facts.measures),
    "world_lists": Benchmark(world_lists.prepare, world_lists.ask, choices.measures),
    "world_sums": Benchmark(world_sums.prepare, world_sums.ask, gsm8k.measures),
    "lm_eval": Benchmark(lm_eval_task.prepare, lm_eval_task.ask, lm_eval_task.measures),
}
