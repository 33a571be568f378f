"""What tools put into answers: encoded by itself and not learned, whatever a tokenizer merges."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest

from data.records import chat
from data.text.answers import AnswerNotes
from data.text.chat import render_completion, render_conversation, render_prompt, response_ids

SAID = "So 48/2 = <<48/2=24>>24 clips, and <<24*2=48>>"
OWN = ["So 48/2 = <<48/2=", "24 clips, and <<24*2="]
GIVEN = ["24>>", "48>>"]
TEXT = ["Who is it? It is Mara. assistant user model", SAID]
FAMILIES = ("chatml", "llama3", "gemma", "mistral")


def split(text: str) -> list[tuple[str, bool]]:
    """Return the pieces of a text: what stands between a `=` and the `>>` after it was given."""
    pieces = re.split(r"(?<==)(\d+>>)", text)
    return [(piece, not place % 2) for place, piece in enumerate(pieces) if piece]


def runs(tokenizer: Any, ids: list[int], mask: list[bool]) -> list[tuple[bool, list[int]]]:
    pairs = groupby(zip(mask, ids, strict=True), key=lambda pair: pair[0])
    return [(own, [number for _, number in pairs]) for own, pairs in pairs]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["byte_level", "trimmed", "metaspace", "metaspace_always"])
def test_results_in_chats_are_pieces_of_their_own(
    tokenizer_of: Callable[..., Any], family: str, kind: str
) -> None:
    made, turns = tokenizer_of(family, kind, text=TEXT), chat("Who?", SAID, "And?", SAID)
    ids, mask = render_conversation(made, turns, split=split)
    whole = render_conversation(made, turns)
    assert made.decode(ids) == made.decode(whole.ids)
    if kind.startswith("metaspace"):  # it would merge a result with what stands around it
        assert ids != whole.ids
    (_, asked), *rest = runs(made, ids, mask)
    assert asked == render_prompt(made, turns[:1])
    for place in (0, 6):
        said = rest[place : place + 5]
        assert [own for own, _ in said] == [True, False, True, False, True]
        given = [numbers for own, numbers in said if not own]
        assert given == [response_ids(made, text, behind="=") for text in GIVEN]
        texts = [made.decode(numbers).strip() for own, numbers in said if own]
        end = made.convert_ids_to_tokens(said[-1][1][-1])
        assert texts == [*OWN, end] and end in made.get_added_vocab()


def test_an_answer_without_results_is_as_it_was(tokenizer_of: Callable[..., Any]) -> None:
    made, turns = tokenizer_of("chatml", "metaspace", text=TEXT), chat("Who?", "24 clips, <<48/2")
    notes = AnswerNotes()
    assert render_conversation(made, turns, notes, split) == render_conversation(made, turns)
    assert not notes.lines()


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "metaspace_always"])
def test_results_in_completions_are_pieces_of_their_own(
    tokenizer_of: Callable[..., Any], kind: str
) -> None:
    made = tokenizer_of("chatml", kind, text=TEXT)
    ids, mask = render_completion(made, "Who?", f" {SAID}", split)
    whole = render_completion(made, "Who?", f" {SAID}")
    assert made.decode(ids) == made.decode(whole.ids)
    assert (ids != whole.ids) == kind.startswith("metaspace")
    (_, asked), *said = runs(made, ids, mask)
    assert asked == render_prompt(made, "Who?")
    pieces = [f" {OWN[0]}", GIVEN[0], OWN[1], GIVEN[1]]
    written = [response_ids(made, piece, behind="=") for piece in pieces]
    assert said == [
        *((not place % 2, numbers) for place, numbers in enumerate(written)),
        (True, [made.eos_token_id]),
    ]
