"""Tasks from text to text of the world: one right answer each, none of it seen in training."""

from __future__ import annotations

from collections import Counter

import pytest

from data.records import Completion
from data.world import World
from data.world.statements import STATEMENTS
from data.world.tasks import ROWS


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, str]]:
    world = World(0)
    found: dict[str, dict[str, str]] = {}
    for part in ROWS:
        records = [one for one in world.records(part) if isinstance(one, Completion)]
        found[part] = {one.prompt: one.completion for one in records}
        assert len(found[part]) == len(records) == ROWS[part]
    return found


@pytest.mark.parametrize("part", ["text_tasks", "rephrasing"])
def test_what_is_held_out_is_not_learned(rows: dict[str, dict[str, str]], part: str) -> None:
    assert rows[part].keys().isdisjoint(rows[f"{part}_heldout"])
    if part == "rephrasing":
        assert set(rows[part].values()).isdisjoint(rows[f"{part}_heldout"].values())


def test_neither_copies_nor_the_most_frequent_answer_go_far(
    rows: dict[str, dict[str, str]],
) -> None:
    for part, found in rows.items():
        assert not any(prompt.partition(": ")[2] == answer for prompt, answer in found.items())
        likeliest = Counter(found.values()).most_common(1)[0][1] / len(found)
        assert likeliest < 0.15, part


def test_each_task_is_answered_as_it_says(rows: dict[str, dict[str, str]]) -> None:
    kinds = Counter(prompt.partition(": ")[0].split()[0] for prompt in rows["text_tasks"])
    assert set(kinds) == {"sentiment", "translate", "order", "job", "home", "pet", "dish"}
    for prompt, answer in rows["text_tasks"].items():
        task, _, asked = prompt.partition(": ")
        if task == "order":
            assert answer.split(", ") == sorted(asked.split(", "))
        elif task == "sentiment":
            assert answer in ("good", "bad")
        elif task != "translate":
            name = task.split(" of ")[1]
            [told] = [s for s in asked.split(". ") if name in s]
            assert answer in told
    assert "Suppe." in " ".join(a for p, a in rows["text_tasks"].items() if "soup" in p)
    assert any(answer.endswith("ist Lehrerin.") for answer in rows["text_tasks"].values())
    for prompt, answer in rows["rephrasing"].items():
        style, _, asked = prompt.partition(": ")
        [attribute] = [a for a, forms in STATEMENTS.items() if any(_fits(f, asked) for f in forms)]
        form = STATEMENTS[attribute][{"plain": 0, "formal": 4}[style]]
        assert _fits(form, answer) and not _fits(form, asked)


def _fits(form: str, text: str) -> bool:
    import re

    pattern = re.escape(form[0].upper() + form[1:]).replace(r"\{n\}", r"(\w+)")
    return re.fullmatch(pattern.replace(r"\{v\}", r"\w+") + r"\.", text) is not None
