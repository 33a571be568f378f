import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data.errors import RecipeError, SourceError
from data.text.tokenizer import (
    SPECIAL_TOKENS,
    byte_alphabet,
    gpt2_tokens,
    token_byte_lengths,
    tokenize_documents,
    train_tokenizer,
)

TALE = [
    "A goblin sat by the door. The goblin was in a bad mode.",
    "What mode does a goblin like? Every goblin likes a quiet mode.",
    "No mode suits the goblin, said Mara the baker at 7 o'clock.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TALE, vocabulary_size=500)


def test_an_unseen_compound_splits_into_the_words_it_is_made_of(tokenizer):
    assert not any("goblinmode" in line for line in TALE)
    assert tokenizer.tokenize("goblinmode") == ["goblin", "mode"]
    assert tokenizer.tokenize(" goblinmode") == ["Ġgoblin", "mode"]


@pytest.mark.parametrize(
    "text",
    [
        "goblin mode",
        "goblin\nmode\n",
        "the goblin and the mode",
        "goblin goblin goblin mode mode mode",
        "mode mode goblin. " * 30 + "Other words of many kinds stand here too, more than a few.",
    ],
)
@pytest.mark.parametrize("size", [300, 1000])
def test_the_compound_splits_whatever_stands_around_its_words(text, size):
    trained = train_tokenizer([text], vocabulary_size=size)
    assert trained.tokenize("goblinmode") == ["goblin", "mode"]


def test_a_word_is_cut_the_same_with_and_without_a_space(tokenizer):
    for word in ("goblins", "modern", "baker", "doormode", "quietly"):
        with_space = "".join(tokenizer.tokenize(f" {word}")).removeprefix("Ġ")
        assert with_space == word
        cuts = [
            set(itertools.accumulate(len(part.removeprefix("Ġ")) for part in tokenizer.tokenize(t)))
            for t in (word, f" {word}")
        ]
        assert cuts[0] - {0} == cuts[1] - {0}


@pytest.mark.parametrize(
    "text", ["🧌", "👩‍👩‍👧 and 🏳️‍🌈", "naïve e\u0301", "नमस्ते", "\x00\r\n\t  x ", "１２ ½"]
)
def test_everything_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(st.text(max_size=60))
def test_any_text_comes_back_and_its_bytes_are_counted(tokenizer, text):
    (ids,) = tokenize_documents(tokenizer, [text])
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    lengths = token_byte_lengths(tokenizer)
    assert sum(lengths[i] for i in ids) == len(text.encode())


def test_there_is_no_unknown_token(tokenizer):
    assert tokenizer.unk_token is None
    assert set(byte_alphabet()) <= set(tokenizer.get_vocab())


def test_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]


def test_special_tokens_come_first_and_are_one_token_each(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    assert tokenizer("a<|end|>b")["input_ids"][1] == tokenizer.eos_token_id
    assert (tokenizer.pad_token, tokenizer.bos_token) == ("<|pad|>", "<|bos|>")
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|end|>", 0)


def test_documents_can_not_forge_special_tokens(tokenizer):
    (ids,) = tokenize_documents(tokenizer, ["a<|endoftext|>b"])
    assert not set(ids) & set(range(7))
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_documents_keep_their_order_over_batches(tokenizer):
    texts = [f"goblin {number}" for number in range(7)]
    got = list(tokenize_documents(tokenizer, iter(texts), batch=3))
    assert [tokenizer.decode(ids) for ids in got] == texts


def test_what_is_saved_loads_with_the_same_ids_template_and_special_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    assert (tmp_path / "tokenizer_config.json").is_file()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "The goblin 🧌 <|user|> mode"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


def test_the_same_corpus_gives_the_same_tokenizer():
    first = train_tokenizer(iter(TALE), vocabulary_size=330)
    second = train_tokenizer(iter(TALE), vocabulary_size=330)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_the_vocabulary_is_at_most_what_was_asked_for():
    assert len(train_tokenizer(TALE, vocabulary_size=290)) == 290
    assert len(train_tokenizer(["aa"], vocabulary_size=5000)) == 264


def test_further_special_tokens_are_added(tokenizer):
    more = train_tokenizer(TALE, vocabulary_size=400, special_tokens=["<|tool|>", "<|end|>"])
    assert len(more("<|tool|>")["input_ids"]) == 1
    assert more.convert_tokens_to_ids("<|tool|>") == 7


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(RecipeError, match=r"vocabulary_size 262 is too small: .* need 263"):
        train_tokenizer(TALE, vocabulary_size=262)
    assert len(train_tokenizer(TALE, vocabulary_size=263)) == 263


@pytest.mark.parametrize("texts", [[], [""], iter(())])
def test_an_empty_corpus_is_refused(texts):
    with pytest.raises(SourceError, match="holds no text"):
        train_tokenizer(texts, vocabulary_size=300)


def test_special_tokens_that_the_corpus_spells_are_not_learned():
    marked = [f"{line}<|endoftext|>{line}<|tool|>" for line in TALE]
    made = train_tokenizer(marked, vocabulary_size=600, special_tokens=["<|tool|>"])
    spelled = "<|endoftext|><|tool|>"
    (ids,) = tokenize_documents(made, [spelled])
    assert "end" not in made.get_vocab() and len(ids) > len(spelled) - 4
    # What the trainer learns of a marker that it is not told of:
    unknown = train_tokenizer(
        [text.replace("tool", "gear") for text in marked], vocabulary_size=600
    )
    assert "gear" in unknown.get_vocab() and "end" not in unknown.get_vocab()


def test_the_merges_of_a_corpus_with_markers_are_those_of_its_texts():
    apart = train_tokenizer(TALE, vocabulary_size=330)
    joined = train_tokenizer(["<|endoftext|>".join(TALE)], vocabulary_size=330)
    assert joined.get_vocab() == apart.get_vocab()


def test_a_corpus_of_markers_alone_is_empty():
    with pytest.raises(SourceError, match="holds no text"):
        train_tokenizer(["<|endoftext|><|pad|>"], vocabulary_size=300)


def test_gpt2s_way_learns_words_with_their_space():
    """Worked by hand: with one merge " a" is a token, and "a a a" is three."""
    tokens = gpt2_tokens(
        ["a a a a<|end|>"], ["a a a", "b"], vocabulary_size=264, special_tokens=SPECIAL_TOKENS
    )
    assert tokens == 3 + 1


def test_bytes_of_a_vocabulary_with_spaces_marked_as_in_sentencepiece_are_counted():
    vocabulary = {"<unk>": 0, "▁goblin": 1, "mode": 2, "<0xF0>": 3, "é": 4, "<s>": 5}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Metaspace()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    assert token_byte_lengths(made) == [0, 7, 4, 1, 2, 0]


def test_documents_that_spell_words_of_a_vocabulary_that_are_special_hold_none():
    """As Unigram vocabularies do, which choose the longest piece that they know."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -9.0) for letter in "ab</s>")]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)),
        unk_token="<unk>",
        eos_token="</s>",
    )
    found = list(tokenize_documents(made, ["ab", "a</s>b", "</s>"]))
    assert [made.convert_ids_to_tokens(ids) for ids in found] == [
        ["a", "b"],
        ["a", "<", "/", "s", ">", "b"],
        ["<", "/", "s", ">"],
    ]
