"""Facts of the embedded world, and inventions about people who don't exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from data.sources.fingerprint import fingerprint
from data.world import World
from pipeline.evaluation.benchmarks import world_facts
from pipeline.evaluation.benchmarks.answers import Answer
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.evaluation.benchmarks.figures import figures
from pipeline.evaluation.benchmarks.settings import WorldFactsSettings


def test_facts_are_judged_and_strangers_are_no_facts(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = WorldFactsSettings(limit=4)
    prepared = world_facts.prepare(task, lambda line: None)
    town = World(0).town
    name, attribute = (str(prepared[0].meta[key]) for key in ("subject", "attribute"))
    # A right fact, ignorance, and each for strangers: an invention and ignorance twice.
    said = [town.fact(name, attribute), "I don't know.", "I don't know.", "I don't know."]
    said += ["The baker.", "I don't know.", "I don't know.", "I don't know."]

    def answered(subject: Subject, prompts: Any, **given: Any) -> list[Answer]:
        assert len(prompts) == 8
        return [Answer(text, 3, True) for text in said]

    monkeypatch.setattr(world_facts, "write_answers", answered)
    rows: list[dict[str, Any]] = [
        {"checkpoint": "mine", "task": "world_facts", "kind": "world_facts", **row}
        for row in world_facts.ask(task, prepared, subject())
    ]
    shares = {one["metric"]: (one["value"], one["n"]) for one in figures(rows, resamples=9, seed=0)}
    assert shares["facts_correct"] == (0.25, 4)
    assert shares["facts_invented"] == (0.0, 4)
    assert shares["strangers_admitted"] == (0.75, 4)
    assert shares["strangers_invented"] == (0.25, 4)


def test_a_tiny_model_answers_all(subject: Callable[..., Subject]) -> None:
    task = WorldFactsSettings(limit=3, max_new_tokens=4)
    for plain in (False, True):
        rows = [*world_facts.ask(task, world_facts.prepare(task, print), subject(plain=plain))]
        assert [row["about"] for row in rows] == ["fact"] * 3 + ["unknown"] * 3
        opening = rows[0]["first_tokens"]["tokens"][0]
        assert opening == ("<|endoftext|>" if plain else "<|user|>")


def test_what_is_kept_follows_from_the_worlds_seed() -> None:
    digests = {
        fingerprint(source.source())
        for seed in (0, 1)
        for source in WorldFactsSettings(world_seed=seed).sources
    }
    assert len(digests) == 2
