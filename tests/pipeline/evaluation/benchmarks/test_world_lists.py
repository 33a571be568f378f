"""Lists of the embedded world: what is asked, and that a reader of lists gets better with each."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import pytest
from pydantic import ValidationError

from data.world import World
from data.world.lists import ways
from pipeline.evaluation.benchmarks import choices, world_lists
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.figures import figures
from pipeline.evaluation.benchmarks.loglikelihood import Likelihood
from pipeline.evaluation.benchmarks.settings import WorldListsSettings

WAYS = ways(World(0).town)


def rows(
    task: WorldListsSettings, subject: Subject, ways: Container[str] = tuple(WAYS)
) -> list[dict[str, Any]]:
    prepared = [line for line in world_lists.prepare(task, print) if line.way in ways]
    about = {"checkpoint": "mine", "task": task.called, "kind": task.kind}
    return [{**about, **row} for row in world_lists.ask(task, prepared, subject)]


def test_each_thing_is_asked_for_in_each_way() -> None:
    lines = world_lists.prepare(WorldListsSettings(), print)
    assert len(lines) == 4 * 20 + 7 * 9 == sum(map(len, WAYS.values()))
    questions = [one.asked for one in lines]
    ends = [one.choices[one.answer] for one in questions]
    assert ends == [WAYS[one.way][one.asked.question] for one in lines]
    assert {len(one.choices) for one in questions} == {35, 23}
    assert all(len(set(one.choices)) == len(one.choices) for one in questions)
    assert world_lists.prepare(WorldListsSettings(), print, 5) == lines[:5]


def test_lines_of_the_same_way_stand_before_and_never_the_one_asked_for(
    subject: Callable[..., Subject],
) -> None:
    task = WorldListsSettings(shots=2, draws=2)
    plain = subject(plain=True, context=64)
    shown: list[str] = []
    asked = plain.pairs

    def seen(question: str, answers: Any, examples: Any, form: Any) -> Any:
        pairs = asked(question, answers[:2], examples, form)
        shown.append(plain.tokenizer.decode(pairs[0].context, skip_special_tokens=True))
        return pairs * (len(answers) // 2) + pairs[: len(answers) % 2]

    object.__setattr__(plain, "pairs", seen)
    found = rows(task, plain, ("pet", "+ 2"))
    assert len(found) == 2 * 29 and {row["draw"] for row in found} == {0, 1}
    assert sorted({row["index"] for row in found}) == [*range(29)]
    for row, text in zip(found, shown, strict=True):
        *before, last = text.split("\n")
        pairs = WAYS[row["way"]]
        assert last == f"{row['question']}:" and len(before) == task.shots
        assert all(pairs[one.partition(": ")[0]] == one.partition(": ")[2] for one in before)
        assert row["question"] not in [one.partition(": ")[0] for one in before]


def test_a_reader_of_lists_is_the_surer_the_more_lines_it_sees(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows all ways and believes each that agrees with the lines before."""
    plain = subject(plain=True)
    decoded = plain.tokenizer.decode

    def read(model: Any, pairs: Any, **given: Any) -> list[Likelihood]:
        found = []
        for context, end in pairs:
            *before, last = decoded(context, skip_special_tokens=True).split("\n")
            known = [one.split(": ") for one in before]
            agreeing = [way for way in WAYS.values() if all(way.get(a) == b for a, b in known)]
            said = [way.get(last.removesuffix(":")) for way in agreeing]
            found.append(Likelihood(said.count(decoded(end).strip()), True, len(end)))
        return found

    monkeypatch.setattr(choices, "loglikelihoods", read)
    accuracy = {}
    for shots in (0, 1, 2):
        task = WorldListsSettings(shots=shots, draws=2 if shots else 1)
        told = figures(rows(task, plain, ("+ 2", "* 2")), resamples=200, seed=0)
        (one,) = [figure for figure in told if figure["metric"] == "accuracy"]
        accuracy[shots] = one["value"]
        assert one["n"] == 18 and one["ci95"][0] <= one["value"] <= one["ci95"][1]
        assert len(one.get("draws", [0])) == task.draws
    # One line, as "4: 8", may be of two ways; two lines are of one.
    assert accuracy[0] < 0.5 < accuracy[1] < accuracy[2] == 1.0


def test_draws_are_for_shots() -> None:
    with pytest.raises(ValidationError, match="draws and examples are for shots"):
        WorldListsSettings(draws=2)
