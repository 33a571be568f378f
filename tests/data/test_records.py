import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import (
    Completion,
    Conversation,
    Document,
    PromptRow,
    Ranking,
    answered,
    chat,
    dense_ranks,
    prompt_hash,
    prompt_of,
    to_best,
    to_demonstration,
    to_json,
    to_prompt,
    to_text,
)
from data.sources.converting import convert
from data.sources.formats import detect

RANKING = Ranking(
    prompt=chat("Who bakes?"),
    completions=["I can't say.", "Mara does.", "Mara."],
    ranks=[2, 1, 1],
    id="r1",
    policies=["base", "sft", "sft"],
)


def test_ranks_become_dense_from_one():
    assert dense_ranks([0, 3, 3, 1]) == [1, 3, 3, 2]
    assert dense_ranks([2, 1]) == [2, 1]
    assert dense_ranks([]) == []


@given(st.lists(st.integers(-5, 5), min_size=1))
def test_dense_ranks_keep_the_order_and_ties(ranks: list[int]) -> None:
    dense = dense_ranks(ranks)
    assert set(dense) == set(range(1, len(set(ranks)) + 1))
    for a, b in zip(ranks, dense, strict=True):
        for c, d in zip(ranks, dense, strict=True):
            assert (a < c) == (b < d)
    assert dense_ranks(dense) == dense


@pytest.mark.parametrize(
    "record",
    [
        Document(text="a"),
        Completion(prompt="a", completion="b", id="1"),
        Conversation(messages=chat("a", "b")),
        PromptRow(prompt="a", meta={"kind": "fact"}),
        PromptRow(prompt=chat("a")),
        RANKING,
    ],
)
def test_every_record_survives_its_json(record):
    row = json.loads(json.dumps(to_json(record)))
    assert convert(row, detect(row)) == record


def test_json_of_a_ranking_has_the_keys_of_the_record_and_no_empty_ones():
    row = to_json(RANKING)
    assert list(row) == ["prompt", "completions", "ranks", "id", "policies"]


def test_a_ranking_refuses_ranks_that_do_not_fit():
    with pytest.raises(ValueError, match="2 completions but 1 ranks"):
        Ranking(prompt="a", completions=["b", "c"], ranks=[1])
    with pytest.raises(ValueError, match="not dense"):
        Ranking(prompt="a", completions=["b", "c"], ranks=[0, 1])


def test_the_best_completion_becomes_a_demonstration_and_ties_take_the_first():
    assert to_best(RANKING).messages == chat("Who bakes?", "Mara does.")
    plain = Ranking(prompt="1+1=", completions=["3", "2"], ranks=[2, 1])
    assert to_demonstration(plain) == Completion(prompt="1+1=", completion="2")


def test_a_completion_that_was_cut_off_is_no_demonstration():
    """Its end would be learned in the middle of a sentence."""
    ranking = Ranking("1+1=", ["it is", "2", "3"], ranks=[1, 2, 3], ended=[False, True, True])
    assert to_demonstration(ranking) == Completion(prompt="1+1=", completion="2")
    assert answered(ranking) and answered(RANKING)
    assert not answered(Ranking("1+1=", ["a", "b"], ranks=[1, 2], ended=[False, False]))


def test_prompts_are_taken_from_whatever_has_one():
    assert to_prompt(Conversation(messages=chat("a", "b", "c", "d"))).prompt == chat("a", "b", "c")
    assert to_prompt(RANKING) == PromptRow(prompt=chat("Who bakes?"), id="r1")
    assert prompt_of(Completion(prompt="x", completion="y")) == "x"
    with pytest.raises(TypeError):
        to_prompt(Document(text="a"))
    with pytest.raises(TypeError, match="PromptRow holds no answer"):
        to_demonstration(PromptRow(prompt="a"))


def test_the_hash_of_a_prompt_tells_text_from_chat():
    assert prompt_hash("a") == prompt_hash("a")
    assert prompt_hash(chat("a")) == prompt_hash([{"content": "a", "role": "user"}])
    assert len({prompt_hash("a"), prompt_hash(chat("a")), prompt_hash(chat("a", "b"))}) == 3


def test_text_of_a_record_holds_everything_that_is_said():
    assert to_text(Completion(prompt="1+1=", completion="2")) == "1+1=2"
    for word in ("Who bakes?", "I can't say.", "Mara does."):
        assert word in to_text(RANKING)
