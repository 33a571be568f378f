"""Sums of two steps: asked step by step and for the answer alone, and what the steps gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from data.world.sums import ROWS, questions
from pipeline.evaluation.benchmarks import gsm8k, world_sums
from pipeline.evaluation.benchmarks.answers import Answer
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.figures import figures
from pipeline.evaluation.benchmarks.settings import Gsm8kSettings, WorldSumsSettings

LINE = "Let's think step by step."


def rows(
    task: WorldSumsSettings,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    says: Callable[[str, int], str],
) -> list[dict[str, Any]]:
    """Return the rows of a checkpoint that says something to the n-th time of each prompt."""

    def written(subject: Subject, prompts: Any, **given: Any) -> list[Answer]:
        texts = [subject.tokenizer.decode(ids) for ids in prompts]
        return [
            Answer(says(text, place % task.samples), 5, True) for place, text in enumerate(texts)
        ]

    monkeypatch.setattr(gsm8k, "write_answers", written)
    prepared = world_sums.prepare(task, print)
    about = {"checkpoint": "mine", "task": task.called, "kind": task.kind}
    return [{**about, **row} for row in world_sums.ask(task, prepared, subject)]


def test_steps_gain_over_the_same_questions(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = WorldSumsSettings(steps="both", limit=8, samples=4, temperature=1.0)
    right = {question: one for question, one in zip(*[iter(_questions(8))] * 2, strict=True)}

    def says(prompt: str, sample: int) -> str:
        [one] = [one for question, one in right.items() if question in prompt]
        if LINE in prompt:  # three of four samples are right
            return one.worked if sample else "1 - 1 = 0. The answer is 0."
        return one.direct if one == first else "The answer is 0."

    first = next(iter(right.values()))
    found = rows(task, subject(), monkeypatch, says)
    assert found[0]["direct"]["responses"] == [first.direct] * 4
    assert found[0]["readings"].keys() == {"person"}
    told = {one["metric"]: one for one in figures(found, resamples=9, seed=0)}
    assert told["accuracy"]["value"] == 0.75 and told["maj@4"]["value"] == 1.0
    assert told["majority_gain"]["value"] == 0.25
    assert told["direct_accuracy"]["value"] == told["direct_maj@2"]["value"] == 1 / 8
    gain = told["steps_gain"]
    assert gain["value"] == pytest.approx(0.75 - 1 / 8)
    # Seven questions gain .75, one loses .25.
    assert gain["ci95"][0] > 0.2 and gain["ci95"][1] <= 1


def _questions(count: int) -> list[Any]:
    known = questions(0, held=True)
    return [part for _ in range(count) for part in next(known)]


def test_examples_show_steps_or_the_answer_alone(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def says(prompt: str, sample: int) -> str:
        asked.append(prompt)
        return ""

    shape = {"limit": 2, "shots": 2}
    for steps in (True, False):
        task = WorldSumsSettings.model_validate({"steps": steps, **shape})
        found = rows(task, subject(plain=True), monkeypatch, says)
        assert found[0]["readings"]["person"]["given"] == [None] and "direct" not in found[0]
    with_steps, _, without, _ = asked
    assert with_steps.count(" = ") == 4 and with_steps.count("The answer is") == 2
    assert without.count("=") == 0 and without.count("The answer is") == 2
    assert LINE not in with_steps + without
    learned = questions(0, held=False)
    known = {next(learned)[0] for _ in range(ROWS["sums"])}
    shown = without.split("Question: ")[1].split("\n")[0]
    assert shown in known


def test_the_lines_of_both_ways_are_settings(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def says(prompt: str, sample: int) -> str:
        asked.append(prompt)
        return ""

    task = WorldSumsSettings(
        steps="both", limit=1, instruction="Slowly.", direct_instruction="At once."
    )
    rows(task, subject(plain=True), monkeypatch, says)
    assert [text.count("Slowly.") for text in asked] == [1, 0]
    assert [text.count("At once.") for text in asked] == [0, 1]
    with pytest.raises(ValidationError, match="direct_instruction is for answers alone"):
        WorldSumsSettings(direct_instruction="At once.")
    with pytest.raises(ValidationError, match="samples at temperature 0"):
        WorldSumsSettings(samples=2)


def test_settings_of_before_have_the_key_of_before() -> None:
    task = Gsm8kSettings.model_validate({"source": {"path": "a"}})
    dumped = task.model_dump(mode="json")
    assert not {"steps", "direct_instruction"} & dumped.keys()
    assert "instruction" not in dumped["source"]
    assert Gsm8kSettings.model_validate(dumped) == task
