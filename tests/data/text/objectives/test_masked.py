"""Masked rows and sentence pairs, for any row and any draw."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.text.objectives.masked import mask_tokens, pair_up
from data.text.objectives.words import token_kinds, word_numbers

MASK = 99
OTHERS = np.arange(50, 60)
SENTENCES = (
    "The baker bakes bread. Never ask 12 bakers, ask 3!\nNew line, (well) hyphen-ated.",
    "Straßenbahn über 東京 and naïve cafés; 3.14 is pi.",
    "goblinmode  two  spaces and a line",
)


@given(
    length=st.integers(1, 80),
    special=st.sets(st.integers(0, 79)),
    share=st.sampled_from([0.15, 0.4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_share_is_chosen_and_nothing_else_changes(
    length: int, special: set[int], share: float, seed: int
) -> None:
    ids = np.arange(length)
    candidates = ~np.isin(ids, list(special))

    def draw() -> Any:
        return mask_tokens(
            ids,
            candidates_T=candidates,
            mask_id=MASK,
            others=OTHERS,
            share=share,
            generator=np.random.default_rng(seed),
        )

    row, again = draw(), draw()
    assert (row.ids_T == again.ids_T).all() and (row.chosen_T == again.chosen_T).all()
    assert not row.chosen_T[~candidates].any()
    assert (row.ids_T == ids)[~row.chosen_T].all()
    known = (row.ids_T == ids) | (row.ids_T == MASK) | np.isin(row.ids_T, OTHERS)
    assert known.all()
    count = int(candidates.sum())
    assert row.chosen_T.sum() == 0 if not count else abs(row.chosen_T.sum() - share * count) <= 1


def test_of_the_chosen_80_10_10() -> None:
    ids = np.arange(40_000) % 40
    row = mask_tokens(
        ids,
        candidates_T=np.ones(len(ids), dtype=bool),
        mask_id=MASK,
        others=OTHERS,
        share=0.15,
        generator=np.random.default_rng(0),
    )
    chosen = row.ids_T[row.chosen_T]
    assert len(chosen) == 6000
    assert np.mean(chosen == MASK) == pytest.approx(0.8, abs=0.02)
    assert np.mean(np.isin(chosen, OTHERS)) == pytest.approx(0.1, abs=0.02)


def byte_level(kind: str) -> Any:
    """A byte-level BPE: with words cut as GPT-2 cuts them, or with spaces that stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    size = 300 if kind == "coarse" else 500
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def other(kind: str) -> Any:
    """A Metaspace or WordPiece tokenizer that knows all pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind == "metaspace":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("contiguous")]
        )
        tokenizer.decoder = decoders.Metaspace()
        trainer: Any = trainers.BpeTrainer(vocab_size=150, show_progress=False)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=150, special_tokens=["[UNK]"], show_progress=False
        )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


@pytest.mark.parametrize("kind", ["coarse", "fine", "ours", "metaspace", "wordpiece"])
def test_words_are_those_of_the_text(kind: str) -> None:
    from transformers import PreTrainedTokenizerFast

    from data.text.tokenizer import train_tokenizer

    if kind == "ours":
        tokenizer: Any = train_tokenizer(SENTENCES * 3, vocabulary_size=320)
    else:
        core = byte_level(kind) if kind in ("coarse", "fine") else other(kind)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    kinds = token_kinds(tokenizer)
    for text in SENTENCES:
        ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
        numbers = word_numbers(ids, kinds)
        words = []
        for number in range(numbers[-1] + 1):
            piece = tokenizer.decode(ids[numbers == number], clean_up_tokenization_spaces=False)
            words.append(piece.strip().replace(" ", ""))
        expected = re.findall(r"[^\W\d_]+|\d+|[^\w\s]+|_+", text)
        got = [word for word in words if word]
        if kind == "wordpiece":  # BERT cuts each sign off by itself
            expected = [p for w in expected for p in ([*w] if not w[0].isalnum() else [w])]
        assert got == expected


def test_whole_words_are_chosen_whole() -> None:
    words = np.asarray([0, 0, 1, 2, 2, 2, 3, 4, 4, 5])
    for seed in range(50):
        row = mask_tokens(
            np.arange(10),
            candidates_T=np.arange(10) != 6,
            mask_id=MASK,
            others=OTHERS,
            share=0.3,
            generator=np.random.default_rng(seed),
            words_T=words,
        )
        for word in range(6):
            assert len(set(row.chosen_T[words == word].tolist())) == 1
        assert 1 <= row.chosen_T.sum() <= 5


@given(length=st.integers(2, 60), documents=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_pair_is_as_long_as_the_row(length: int, documents: int, seed: int) -> None:
    ids, where = np.arange(length), np.arange(length) * documents // length
    pair = pair_up(ids, where, ids + 100, where + 10, np.random.default_rng(seed))
    assert len(pair.first) + len(pair.second) == length
    assert (pair.first == ids[: len(pair.first)]).all()
    if pair.follows:
        assert (pair.second == ids[len(pair.first) :]).all()
        assert where[len(pair.first)] == where[len(pair.first) - 1]


def test_half_of_the_pairs_follow() -> None:
    ids, where = np.arange(40), np.zeros(40, dtype=int)
    follows = [
        pair_up(ids, where, ids + 100, where + 1, np.random.default_rng(seed)).follows
        for seed in range(400)
    ]
    assert 160 < sum(follows) < 240
    same = [pair_up(ids, where, ids, where, np.random.default_rng(s)).follows for s in range(20)]
    assert all(same)  # from its own document nothing is foreign
