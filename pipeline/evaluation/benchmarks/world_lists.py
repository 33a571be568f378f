"""Lists of the embedded world: is the line's end that the lines before ask for the likeliest?

Each thing that a list can have (a person, a number) is asked for in each way that lists go on, a
fact or a sum, behind lines of that way. Without any the way is a guess; the more lines, the surer
it is. The choices are all that stands behind such things in lists of facts, or in those of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from data.text.prompting import LISTS
from data.world import World
from data.world.lists import ways
from pipeline.evaluation.benchmarks import choices
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.choices import Question
from pipeline.evaluation.benchmarks.measures import Row
from pipeline.evaluation.benchmarks.settings import WorldListsSettings


class Line(NamedTuple):
    """A line of a list as a question, and the way that the list goes on."""

    asked: Question
    way: str


def prepare(
    task: WorldListsSettings, say: Callable[[str], None], most: int | None = None
) -> list[Line]:
    """Return the lines of all ways, those of a way together."""
    known = ways(World(task.world_seed).town)
    of_kind: dict[bool, dict[str, None]] = {}
    for pairs in known.values():
        of_kind.setdefault(_of_sums(pairs), {}).update(dict.fromkeys(pairs.values()))
    lines = []
    for way, pairs in known.items():
        ends = tuple(of_kind[_of_sums(pairs)])
        lines += [Line(Question(thing, ends, ends.index(end)), way) for thing, end in pairs.items()]
    return lines[:most]


def _of_sums(pairs: Mapping[str, str]) -> bool:
    return all(thing.isdecimal() for thing in pairs)


def ask(task: WorldListsSettings, prepared: list[Line], subject: Subject) -> Iterator[Row]:
    """Yield a row for each line and draw of the lines before it."""
    before = 0
    for way, members in groupby(prepared, key=lambda one: one.way):
        lines = [one.asked for one in members]
        for row in choices.ask(task, (lines, lines), subject, LISTS):
            yield {**row, "index": before + row["index"], "way": way}
        before += len(lines)
