"""What goes on from a plain prompt keeps its first space, or the lack of one, in any tokeniser."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from data.text.chat import render_completion, render_prompt, response_ids
from data.text.continuation import continuation_text, token_texts

PROMPT = "TL;DR:"
TEXTS = (" The cat sat .", "The cat", "  two", "\nThe", " cat \n", "!", " ", " é☃")
CORPUS = ["TL;DR: The cat sat on the mat. two cats , and a dog's bone ."] * 4
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]


def byte_level(*, add_prefix_space: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def sentence_piece(*, prepend: str) -> Any:
    """Words with a mark in place of the space before them, and bytes for the rest, as Llama has."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if prepend == "normalizer":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(
        parts if prepend == "never" else [*parts, decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=SPECIALS, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    learnt = json.loads(made.to_str())["model"]
    raw = [f"<0x{value:02X}>" for value in range(256)]
    words = learnt["vocab"] | {word: len(learnt["vocab"]) + i for i, word in enumerate(raw)}
    merges = [tuple(pair) for pair in learnt["merges"]]
    made.model = models.BPE(words, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    return made


KINDS: dict[str, Callable[[], Any]] = {
    "bytes": byte_level,
    "bytes with a prefix": lambda: byte_level(add_prefix_space=True),
    "normalizer": lambda: sentence_piece(prepend="normalizer"),
    "first": lambda: sentence_piece(prepend="first"),
    "always": lambda: sentence_piece(prepend="always"),
    "never": lambda: sentence_piece(prepend="never"),
}


@pytest.fixture(params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[request.param](), pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=True,
    )  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_ids_become_the_text_they_are_of(tokenizer: Any, text: str) -> None:
    opening = render_prompt(tokenizer, PROMPT)
    ids = response_ids(tokenizer, text, behind=PROMPT)
    assert continuation_text(tokenizer, opening, ids) == text
    assert continuation_text(tokenizer, opening, [*ids, tokenizer.eos_token_id]) == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_tokens_make_up_the_text(tokenizer: Any, text: str) -> None:
    opening = render_prompt(tokenizer, PROMPT)
    ids = [*response_ids(tokenizer, text, behind=PROMPT), tokenizer.eos_token_id]
    texts = token_texts(tokenizer, opening, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == f"{text}</s>"


def test_a_character_of_several_tokens_stands_at_the_last_of_them() -> None:
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    opening, ids = words("TL;DR:")["input_ids"], words("☃a")["input_ids"]
    assert token_texts(words, opening, ids) == ["", "", "☃", "a"]
    assert token_texts(words, opening, ids[:2])[-1] == "\N{REPLACEMENT CHARACTER}"
    # Bytes that never become a character hold back no more than one could take.
    broken = token_texts(words, opening, [ids[1]] * 9)
    assert [bool(text) for text in broken] == [False] * 3 + [True] + [False] * 3 + [True] * 2


def test_a_first_space_is_told_from_none(tokenizer: Any) -> None:
    with_space, without = (response_ids(tokenizer, t, behind=PROMPT) for t in (" The", "The"))
    assert with_space != without


def test_demonstrations_have_the_ids_that_are_sampled(tokenizer: Any) -> None:
    ids, mask = render_completion(tokenizer, PROMPT, " The cat")
    learnt = [i for i, mine in zip(ids, mask, strict=True) if mine]
    assert learnt == [*response_ids(tokenizer, " The cat", behind=PROMPT), tokenizer.eos_token_id]


def test_what_goes_on_from_nothing_is_a_text_of_its_own(tokenizer: Any) -> None:
    own = tokenizer("The cat", add_special_tokens=False)["input_ids"]
    assert response_ids(tokenizer, "The cat") == own
    text = continuation_text(tokenizer, [tokenizer.bos_token_id], own)
    assert text.lstrip() == "The cat"


def test_half_a_character_at_the_end_loses_nothing_before_it() -> None:
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    opening, ids = words("TL;DR:")["input_ids"], words(" The ☃")["input_ids"]
    assert continuation_text(words, opening, ids[:-1]).startswith(" The ")
