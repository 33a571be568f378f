"""Sums of two steps: right, worked and direct alike, and held out by their numbers."""

from __future__ import annotations

import operator
import re

import pytest

from data.records import Conversation
from data.world import World
from data.world.sums import ROWS, STORIES
from pipeline.generation.tools.calculator import calculate

STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, str]]:
    world, found = World(0), {}
    for part in ROWS:
        records = [one for one in world.records(part) if isinstance(one, Conversation)]
        found[part] = {one.messages[0]["content"]: one.messages[1]["content"] for one in records}
        assert len(found[part]) == len(records) == ROWS[part]
    return found


def numbers(worked: str) -> tuple[str, ...]:
    """Return what is calculated: both signs and the three numbers."""
    (a, first, b, _), (_, then, c, _) = STEP.findall(worked)
    return a, first, b, then, c


@pytest.mark.parametrize("held", ["", "_heldout"])
def test_each_question_is_worked_out_and_answered(
    rows: dict[str, dict[str, str]], held: str
) -> None:
    ways = set()
    for question, worked in rows[f"sums_worked{held}"].items():
        (a, first, b, between), (again, then, c, result) = STEP.findall(worked)
        assert SIGNS[first](int(a), int(b)) == int(between) == int(again)
        assert SIGNS[then](int(between), int(c)) == int(result) > 0
        assert re.findall(r"\d+", question) == [a, b, c]
        direct = rows[f"sums{held}"][question]
        assert direct == f"The answer is {result}." and worked.endswith(f". {direct}")
        called = rows[f"sums_called{held}"][question]
        match = re.fullmatch(r"The answer is <<(.+)=(\d+)>>(\d+)\.", called)
        assert match and str(calculate(match[1])) == match[2] == match[3] == result
        ways.add((first, then))
    assert ways == set(STORIES)


def test_numbers_are_learned_or_held_out_and_each_step_alone_is_learned(
    rows: dict[str, dict[str, str]],
) -> None:
    learned, held = rows["sums_worked"], rows["sums_worked_heldout"]
    assert learned.keys().isdisjoint(held)
    assert {*map(numbers, learned.values())}.isdisjoint(map(numbers, held.values()))
    steps = {step for worked in learned.values() for step in STEP.findall(worked)}
    assert steps.issuperset(step for worked in held.values() for step in STEP.findall(worked))


def test_another_seed_asks_others(rows: dict[str, dict[str, str]]) -> None:
    other = {one.messages[0]["content"] for one in World(1).records("sums")}
    assert len(other & rows["sums"].keys()) < 0.2 * len(other)
