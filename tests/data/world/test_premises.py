"""Questions with a false premise: none is true, and going along with one is an invention."""

from __future__ import annotations

import pytest

from data.text.prompting import plain_prompt
from data.world import World
from data.world.annotator import GoldAnnotator


def test_every_question_takes_for_granted_what_is_not_so() -> None:
    for seed in (0, 2):
        world = World(seed)
        rows = world.prompts("premises")
        assert len(rows) == 160 and rows == World(seed).prompts("premises")
        assert len({plain_prompt(row.prompt) for row in rows}) == 160
        for row in rows:
            value = str(row.meta["wording"]).partition("/")[2]
            assert row.meta["kind"] == "premise" and value in plain_prompt(row.prompt)
            assert world.town.fact(row.meta["subject"], row.meta["attribute"]) != value


@pytest.fixture(scope="module")
def gold() -> GoldAnnotator:
    return GoldAnnotator(0)


@pytest.mark.parametrize(
    ("answer", "outcome", "invented"),
    [
        ("{n} has a {true}.", "right", False),
        ("{n} keeps a {true}, not a {false}.", "right", False),
        ("{n} does not keep a {false}.", "right", False),
        ("{n} keeps a {false}.", "wrong", True),
        ("{n} has kept a {false} for years.", "wrong", True),
        ("{n} has a {other}.", "wrong", True),
        ("I don't know anyone called {n}.", "ignorant", False),
        ("{n} lives by the {home}.", "wrong", False),
    ],
)
def test_an_answer_corrects_it_or_goes_along(
    gold: GoldAnnotator, answer: str, outcome: str, invented: bool
) -> None:
    facts = gold.town.facts["Mira"]
    false, other = [v for v in ("goat", "hen", "dog") if v != facts["pet"]][:2]
    text = answer.format(n="Mira", true=facts["pet"], false=false, other=other, home=facts["home"])
    found = gold.assess(f"Why does Mira keep a {false}?", text)
    assert (found.kind, found.outcome, found.invented) == ("premise", outcome, invented)
