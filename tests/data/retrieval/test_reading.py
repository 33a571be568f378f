"""A prompt behind its passages: one layout, and no more tokens than there is room for."""

from __future__ import annotations

from typing import Any

from data.records import Completion, Conversation, chat
from data.retrieval.index import build_index
from data.retrieval.passages import Passage
from data.retrieval.reading import Retriever
from data.text.prompting import plain_prompt, with_passages


class Words:
    """A tokenizer whose tokens are words and line breaks."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [*range(len(text.replace("\n", " \n").split(" ")))]}


TEXTS = ("Mira keeps a goat.", "Mira bakes " + "a loaf and " * 9 + "more.", "Mira has a hen.")


def retriever(passages: int, tokens: int) -> Retriever:
    index = build_index([Passage(text, f"x:{n}") for n, text in enumerate(TEXTS, start=1)])
    return Retriever(index, passages, tokens)


def test_passages_stand_in_front_of_what_is_asked_last() -> None:
    prompt = chat("Hello?", "Yes.", "Who is it?", system="Be brief.")
    assert with_passages(prompt, []) is prompt
    given = with_passages(prompt, ["One.", "Two."])
    assert given[:-1] == prompt[:-1]
    assert given[-1] == {"role": "user", "content": "One.\nTwo.\n\nWho is it?"}
    assert prompt[-1]["content"] == "Who is it?"
    assert with_passages("Once upon", ["One."]) == "One.\n\nOnce upon"
    assert plain_prompt(with_passages(chat("Who?"), ["One."])) == "One.\n\nWho?\n"


def test_the_last_turn_is_looked_up() -> None:
    prompt, found = retriever(1, 100).read(chat("a hen?", "No.", "a goat?"), Words())
    assert [hit.where for hit in found] == ["x:1"]
    assert prompt == [*chat("a hen?", "No."), *chat(f"{TEXTS[0]}\n\na goat?")]
    assert retriever(1, 100).read("something else", Words()) == ("something else", [])


def test_a_passage_that_no_longer_fits_is_left_out() -> None:
    everything = {hit.where for hit in retriever(3, 100).read("Mira", Words())[1]}
    assert everything == {"x:1", "x:2", "x:3"}
    prompt, found = retriever(3, 10).read("Mira", Words())
    assert {hit.where for hit in found} == {"x:1", "x:3"} and TEXTS[1] not in prompt
    assert retriever(3, 4).read("Mira", Words()) == ("Mira", [])


def test_a_demonstration_answers_behind_its_passages() -> None:
    shown = retriever(1, 100)
    turns = chat("a hen?", "No.", "a goat?", "Mira.")
    read = shown.demonstrated(Conversation(turns, "a"), Words())
    assert read == Conversation([*turns[:2], *chat(f"{TEXTS[0]}\n\na goat?", "Mira.")], "a")
    completion = shown.demonstrated(Completion("a goat? ", "Mira.", "b"), Words())
    assert completion == Completion(f"{TEXTS[0]}\n\na goat? ", "Mira.", "b")
    told = Conversation(chat(system="goat")[:1] + turns[-1:], "c")
    assert shown.demonstrated(Conversation(turns[-1:], "d"), Words()).messages == turns[-1:]
    assert shown.demonstrated(told, Words()).messages[-1] == turns[-1]
