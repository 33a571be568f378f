"""How a text is cut: pieces, and the merges that made them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.text.merges import Merge, as_json, merge_word, picture, pieces
from data.text.tokenizer import train_tokenizer

TALE = [
    "A goblin sat by the door. The goblin was in a bad mode.",
    "What mode does a goblin like? Every goblin likes a quiet mode.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TALE, vocabulary_size=500)


def test_the_pair_that_was_learned_first_is_put_together_first():
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2, ("a", "abc"): 3}
    assert merge_word([*"aabc"], ranks) == [
        Merge("a", Merge("a", Merge("b", "c", 1, 1), 2, 3), 3, 4)
    ]
    assert merge_word([*"aaa"], {("a", "a"): 0}) == [Merge("a", "a", 1, 1), "a"]
    assert merge_word([*"xy"], ranks) == ["x", "y"]


def test_the_picture_is_a_tree_with_the_last_merge_at_its_root():
    (made,) = merge_word([*"abc"], {("b", "c"): 6, ("a", "bc"): 1200})
    assert [*picture(made)] == [
        "2. a + bc = abc  (learned as 1,201)",
        "  1. b + c = bc  (learned as 7)",
    ]
    inner = {"left": "b", "right": "c", "step": 1, "learned": 7}
    assert as_json(made) == {"left": "a", "right": inner, "step": 2, "learned": 1201}


@pytest.mark.parametrize(
    "text", ["goblinmode", " The goblinmodes, 42 naïve 🧌!", "a<|endoftext|>b", "", "\n  x"]
)
def test_pieces_and_their_bytes_are_those_of_the_tokenizer(tokenizer, text):
    found = pieces(tokenizer, text)
    assert b"".join(one.bytes for one in found) == text.encode()
    assert tokenizer.decode([one.id for one in found]) == text
    assert all(one.made is not None for one in found)


def test_an_unseen_compound_is_made_of_learned_pieces(tokenizer):
    goblin, mode = pieces(tokenizer, "goblinmode")
    assert (goblin.bytes, mode.bytes) == (b"goblin", b"mode")
    assert isinstance(goblin.made, Merge) and isinstance(mode.made, Merge)
    assert max(goblin.made.step, mode.made.step) == len("goblin") - 1 + len("mode") - 1


def backed(model, **parts):
    backend = Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_characters_and_bytes_of_a_vocabulary_as_in_sentencepiece():
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "<0xC3>": 5, "<0xA9>": 6}
    made = backed(
        models.BPE(vocab=vocabulary, merges=[("▁", "a")], byte_fallback=True),
        normalizer=normalizers.Lowercase(),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    )
    found = pieces(made, "ABé")
    assert [one.bytes for one in found] == [b" a", b"b", b"\xc3", b"\xa9"]
    assert [one.made for one in found] == [Merge("▁", "a", 1, 1), "b", "<0xC3>", "<0xA9>"]


def test_a_word_that_the_vocabulary_has_whole_needs_no_merges_where_they_are_ignored():
    model = models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<unk>": 3}, merges=[], ignore_merges=True)
    assert [(one.name, one.made) for one in pieces(backed(model), "ab")] == [("ab", "ab")]


def test_no_merges_are_told_where_there_are_none():
    found = pieces(backed(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")), "a")
    assert [(one.name, one.id, one.made) for one in found] == [("a", 1, None)]


def test_words_that_were_added_to_the_vocabulary_leave_the_merges_untold(tokenizer):
    more = train_tokenizer(TALE, vocabulary_size=300)
    more.add_tokens(["goblinmode"])
    assert [(one.name, one.made) for one in pieces(more, "goblinmode")] == [("goblinmode", None)]
