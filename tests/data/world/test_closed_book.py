"""Questions with a closed book: of some people in training, of the others where it is judged."""

from __future__ import annotations

from data.records import Completion, Document
from data.world import World
from data.world.town import ATTRIBUTES, NAMES


def questions(world: World, part: str) -> list[Completion]:
    return [one for one in world.records(part) if isinstance(one, Completion)]


def test_each_half_asks_for_all_facts_of_its_people_and_of_nobody_else() -> None:
    for seed in (0, 3):
        world = World(seed)
        halves = [questions(world, part) for part in ("closed_book", "closed_book_heldout")]
        people = [{row.completion.split()[0] for row in rows} for rows in halves]
        assert [len(names) for names in people] == [10, 10]
        assert people[0] | people[1] == set(NAMES)
        for rows in halves:
            assert len({row.completion for row in rows}) == 10 * len(ATTRIBUTES)
            for row in rows:
                name = row.completion.split()[0]
                [value] = [
                    value
                    for value in (world.town.fact(name, attribute) for attribute in ATTRIBUTES)
                    if value in row.completion
                ]
                assert name in row.prompt and value not in row.prompt


def test_answers_stand_in_the_corpus_and_the_evaluation_asks_otherwise() -> None:
    world = World(0)
    rows = [*questions(world, "closed_book"), *questions(world, "closed_book_heldout")]
    told = {one.text for one in world.records("corpus") if isinstance(one, Document)}
    assert all(any(row.completion in text for text in told) for row in rows)
    kept = {question.text for question in world.pool.evaluation["fact"]}
    assert kept.isdisjoint(row.prompt.removeprefix("fact: ") for row in rows)
