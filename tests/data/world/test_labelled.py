"""The world's rows with labels: deterministic, right, and held out of what is learned."""

from __future__ import annotations

import pytest

from data.records import Extract, Labelled, Tagged
from data.world.labelled import labelled_records
from data.world.town import ATTRIBUTES, NAMES, Town


@pytest.mark.parametrize("part", ["statements", "passages", "names"])
def test_a_seed_gives_the_same_rows_and_none_is_in_both(part: str) -> None:
    rows, held = (labelled_records(Town(3), name) for name in (part, f"{part}_heldout"))
    assert labelled_records(Town(3), part) == rows and labelled_records(Town(4), part) != rows
    assert len(held) >= 300 and len({row.id for row in [*rows, *held]}) == len(rows) + len(held)
    texts = {getattr(row, "context", None) or row.text for row in rows}
    assert texts.isdisjoint(getattr(row, "context", None) or row.text for row in held)


def test_statements_are_true_or_false_of_the_town() -> None:
    town = Town(0)
    parts = ("statements", "statements_heldout")
    rows = [row for part in parts for row in labelled_records(town, part)]
    for row in rows:
        assert isinstance(row, Labelled)
        name = next(name for name in NAMES if name in row.text)
        told = any(town.fact(name, attribute) in row.text for attribute in ATTRIBUTES)
        # No value of one attribute is a value of another.
        assert told == (row.label == "true")
    assert sum(row.label == "true" for row in rows) * 2 == len(rows)


def test_answers_and_names_stand_where_they_are_said_to() -> None:
    town = Town(0)
    for part in ("passages", "passages_heldout"):
        for row in labelled_records(town, part):
            assert isinstance(row, Extract)
            [(start, answer)] = row.answers
            assert row.context[start : start + len(answer)] == answer
            assert not any(name in row.context.split() for name in NAMES)
    people: list[set[str]] = []
    for part in ("names", "names_heldout"):
        rows = labelled_records(town, part)
        people.append(set())
        for row in rows:
            assert isinstance(row, Tagged) and len(row.spans) == 10
            people[-1] |= {row.text[a:b] for a, b, label in row.spans if label == "person"}
    assert people[0].isdisjoint(people[1])
