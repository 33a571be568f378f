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


def test_a_base_models_facts_are_read_by_likelihood_each_once(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = WorldFactsSettings()
    prepared, town = world_facts.prepare(task, lambda line: None), World(0).town
    begun: list[str] = []

    def knows_animals(subject: Subject, asked: Any, **given: Any) -> list[dict[str, Any]]:
        found = []
        for pairs in asked:
            begun.append(subject.tokenizer.decode(pairs[0].context, skip_special_tokens=True))
            texts = [subject.tokenizer.decode(pair.continuation).strip() for pair in pairs]
            known = texts[0] if begun[-1].split()[1] != "keeps" else (
                town.fact(begun[-1].split()[0], "pet")
            )  # fmt: skip
            found.append({"logprobs": [float(text == known) for text in texts]})
        return found

    monkeypatch.setattr(world_facts, "score_choices", knows_animals)
    monkeypatch.setattr(
        world_facts,
        "write_answers",
        lambda _, prompts, **given: [Answer("", 0, True)] * len(prompts),
    )
    rows: list[dict[str, Any]] = [
        {"checkpoint": "base", "task": "world_facts", "kind": "world_facts", **row}
        for row in world_facts.ask(task, prepared, subject(plain=True))
    ]
    assert len(begun) == len(set(begun)) == 80
    assert {"Pavel keeps a", "The favourite food of Pavel is"} < set(begun)
    told = {
        one["metric"]: (one["value"], one["n"])
        for one in figures(rows, resamples=9, seed=0)
        if one.get("reading") == "likelihood"
    }
    # The first value of the other kinds is true of two (of four, of five places) in twenty.
    assert told["facts_correct"] == (pytest.approx((20 + 2 + 4 + 2) / 80), 80)
    assert told["chance"] == (pytest.approx((0.1 + 0.2 + 0.1 + 0.1) / 4), 80)


def test_what_is_kept_follows_from_the_worlds_seed() -> None:
    digests = {
        fingerprint(source.source())
        for seed in (0, 1)
        for source in WorldFactsSettings(world_seed=seed).sources
    }
    assert len(digests) == 2
