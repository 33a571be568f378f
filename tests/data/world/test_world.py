"""The parts of the world: their sizes, that they repeat, and that the evaluation is kept apart."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache

import pytest

from data.errors import SourceError
from data.records import Conversation, Document, PromptRow
from data.world import PARTS, World
from data.world.lists import LONGEST, SHORTEST, ways
from data.world.questions import KINDS, LEAD_INS
from data.world.town import ATTRIBUTES, NAMES, VALUES, Sum, Town, all_sums

PROMPT_PARTS = ("rm_prompts", "rm_prompts_heldout", "ppo_prompts", "eval_prompts")
OTHERS = tuple(part for part in PARTS if part != "tongue")
"""The tongue is long; what stands of it here is what is held out."""
TRAINED = ("instructions", "instructions_heldout", "rm_prompts", "rm_prompts_heldout")


@pytest.fixture(scope="module")
def world() -> World:
    """The world, which makes each part once."""
    made = World(0)
    made.records = cache(made.records)  # type: ignore[method-assign]
    return made


def asked(record: object) -> str:
    """Return the user's text with case and spaces normalised."""
    if isinstance(record, Conversation):
        text = record.messages[0]["content"]
    else:
        assert isinstance(record, PromptRow) and isinstance(record.prompt, list)
        text = record.prompt[-1]["content"]
    return " ".join(text.lower().split())


def bare(record: object) -> str:
    """Return the user's text without the words that lead in to it."""
    text = asked(record)
    for lead_in in LEAD_INS:
        text = text.removeprefix(lead_in.lower())
    return text


def digest(world: World) -> str:
    text = "\n".join(repr(record) for part in OTHERS for record in world.records(part))
    return hashlib.sha256(text.encode()).hexdigest()


def test_no_evaluation_question_is_asked_in_training(world: World) -> None:
    held = {bare(row) for row in world.records("eval_prompts")}
    assert len(held) >= 600
    for part in (*TRAINED, "ppo_prompts"):
        assert held.isdisjoint(bare(row) for row in world.records(part)), part


def test_no_evaluation_question_is_asked_in_the_corpus(world: World) -> None:
    held = {bare(row) for row in world.records("eval_prompts")}
    text = " ".join(" ".join(d.text.lower().split()) for d in world.records("corpus"))
    assert [question for question in held if question in text] == []


def test_no_evaluation_couple_of_subject_and_wording_is_used_elsewhere(world: World) -> None:
    def couples(part: str) -> set[tuple[str, ...]]:
        keys = ("kind", "subject", "attribute", "wording")
        return {tuple(row.meta[key] for key in keys) for row in world.records(part)}

    held = couples("eval_prompts")
    assert len(held) == len(world.records("eval_prompts"))
    for part in ("rm_prompts", "rm_prompts_heldout", "ppo_prompts"):
        assert held.isdisjoint(couples(part)), part


def test_evaluated_facts_are_asked_in_other_words_in_the_instructions(world: World) -> None:
    taught = {bare(row) for row in world.records("instructions")}
    for name in NAMES:
        about = [question for question in taught if name.lower() in question]
        assert len(about) >= 40


def test_strangers_of_the_evaluation_are_new(world: World) -> None:
    held = {row.meta["subject"] for row in world.records("eval_prompts")}
    strangers = held & set(world.strangers["eval_prompts"])
    assert len(strangers) >= 80
    for part in (*TRAINED, "ppo_prompts"):
        text = " ".join(asked(row) for row in world.records(part))
        assert [name for name in strangers if name.lower() in text.split()] == []


def test_held_out_prompts_are_new_to_the_reward_model(world: World) -> None:
    held = {asked(row) for row in world.records("rm_prompts_heldout")}
    assert held.isdisjoint(asked(row) for row in world.records("rm_prompts"))


def test_held_out_instructions_ask_what_the_instructions_do_not(world: World) -> None:
    held = {asked(row) for row in world.records("instructions_heldout")}
    assert held.isdisjoint(asked(row) for row in world.records("instructions"))


def test_instructions_are_12000_distinct_pairs(world: World) -> None:
    rows = world.records("instructions")
    pairs = {tuple(message["content"] for message in row.messages) for row in rows}
    assert len(rows) == len(pairs) == 12_000


@pytest.mark.parametrize(
    ("part", "least"), [("rm_prompts", 1500), ("ppo_prompts", 2000), ("eval_prompts", 600)]
)
def test_prompts_are_many_and_of_every_kind(world: World, part: str, least: int) -> None:
    rows = world.records(part)
    assert len(rows) >= least
    counts = [sum(row.meta["kind"] == kind for row in rows) for kind in KINDS]
    assert sum(counts) == len(rows)
    assert min(counts) >= 40


def test_corpus_documents_are_distinct_and_others_than_held_out(world: World) -> None:
    texts = [document.text for document in world.records("corpus")]
    held = [document.text for document in world.records("corpus_heldout")]
    assert all(isinstance(document, Document) for document in world.records("corpus_heldout"))
    assert len(set(texts)) == len(texts)
    assert set(texts).isdisjoint(held)
    assert sum(len(text) for text in texts) > 2_000_000


def test_every_fact_is_in_the_corpus_in_several_wordings(world: World) -> None:
    text = "\n".join(document.text for document in world.records("corpus"))
    town = world.town
    for name in NAMES:
        job = town.fact(name, "job")
        found = [
            f"{name} is a {job}",
            f"{name} works as a {job}",
            f"everyone knows {name} as a {job}",
        ]
        assert all(wording in text for wording in found)


def test_corpus_has_examinations_with_letters(world: World) -> None:
    papers = [d.text for d in world.records("corpus") if d.text.startswith("Examination")]
    assert len(papers) > 300
    assert sum(all(f"\n{letter}) " in text for letter in "ABCD") for text in papers) > 200


def test_a_list_goes_on_in_one_way_from_its_first_line_to_its_last(world: World) -> None:
    known = ways(world.town)
    met = set()
    for document in world.records("lists")[:400] + world.records("lists_heldout"):
        assert isinstance(document, Document)
        lines = [tuple(line.split(": ")) for line in document.text.split("\n")]
        assert SHORTEST <= len(lines) <= LONGEST and len(set(lines)) == len(lines)
        agreeing = {way for way, pairs in known.items() if set(lines) <= set(pairs.items())}
        assert agreeing
        met |= agreeing
    assert met == set(known)


def test_held_out_lists_are_others(world: World) -> None:
    lists, held = ({d.text for d in world.records(part)} for part in ("lists", "lists_heldout"))
    assert len(lists) == 8000 and len(held) == 150 and lists.isdisjoint(held)


def test_records_do_not_hang_on_the_order_of_calls_or_on_the_process(world: World) -> None:
    world.records("ppo_prompts")
    world.records("corpus")
    script = (
        "import hashlib; from data.world import World, PARTS; w = World(0);"
        "t = '\\n'.join(repr(r) for p in PARTS if p != 'tongue' for r in w.records(p));"
        "print(hashlib.sha256(t.encode()).hexdigest())"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert digest(world) == out


def test_another_seed_gives_another_world(world: World) -> None:
    other = World(4)
    small = [part for part in OTHERS if f"{part}_heldout" not in PARTS]  # made as the large ones
    assert len(small) > 15
    assert all(other.records(part) != world.records(part) for part in small)
    assert Town(3).facts != Town(4).facts


def test_ids_are_unique_within_a_part(world: World) -> None:
    for part in OTHERS:
        ids = [record.id for record in world.records(part)]
        assert len(set(ids)) == len(ids)


def test_an_unknown_part_is_refused_with_a_suggestion(world: World) -> None:
    with pytest.raises(SourceError, match=r"no part 'eval_promts'.*Did you mean 'eval_prompts'"):
        world.records("eval_promts")


def test_the_town_deals_values_evenly() -> None:
    town = Town(7)
    for attribute in ATTRIBUTES:
        share = len(NAMES) // len(VALUES[attribute])
        for value in VALUES[attribute]:
            assert len(town.holders(attribute, value)) == share


def test_values_are_single_words_that_hold_no_other() -> None:
    words = [value for values in VALUES.values() for value in values]
    assert len(set(words)) == len(words)
    assert all(word.isalpha() and word.islower() for word in words)


@pytest.mark.parametrize(
    ("problem", "result"),
    [(Sum(3, "+", 4), 7), (Sum(5, "-", 2), 3), (Sum(2, "*", 5), 10), (Sum(10, "/", 5), 2)],
)
def test_sums_come_out_right(problem: Sum, result: int) -> None:
    assert problem.result == result
    assert problem in all_sums()


def test_importing_the_world_brings_no_judge_and_nothing_heavy() -> None:
    script = (
        "import sys, data.world; data.world.World(0).records('eval_prompts');"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'numpy')];"
        "bad += [m for m in sys.modules if m in ('data.world.annotator', 'data.world.reading')];"
        "print(bad)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
