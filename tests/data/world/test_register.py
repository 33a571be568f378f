"""The register tells every fact of the town once, and no more."""

from __future__ import annotations

from data.retrieval.index import build_index
from data.retrieval.passages import Passage
from data.text.prompting import plain_prompt
from data.world import World
from data.world.reading import Reader


def test_a_document_a_person_tells_what_is_true_of_them() -> None:
    for seed in (0, 3):
        town, documents = World(seed).town, World(seed).documents("register")
        readers = [Reader(document.text) for document in documents]
        assert [reader.people for reader in readers] == [{name} for name in town.facts]
        assert [reader.values for reader in readers] == [
            set(facts.items()) for facts in town.facts.values()
        ]


def test_who_is_asked_about_is_found() -> None:
    world = World(0)
    documents = world.documents("register")
    index = build_index([Passage(document.text, document.id) for document in documents])
    facts = [row for row in world.prompts("eval_prompts") if row.meta["kind"] == "fact"]
    found = [
        any(row.meta["subject"] in hit.text for hit in index.search(plain_prompt(row.prompt), 2))
        for row in facts
    ]
    assert sum(found) / len(found) > 0.9
