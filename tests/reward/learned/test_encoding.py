"""Texts to ids: what is read at the end, and what is cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import ModelError
from data.records import chat
from reward.learned.encoding import Encoder, longest_input

USER, ASSISTANT, END, BOS = 3, 4, 6, 1


def test_a_chat_is_rendered_as_the_policy_sees_it_and_ends_its_turn(tokenizer: Any) -> None:
    ids = Encoder(tokenizer, 64).encode(chat("hi"), " yes ")
    assert tokenizer.decode(ids) == "<|user|>hi<|end|><|assistant|>yes<|end|>"
    assert (ids[0], ids[-1]) == (USER, END)


def test_a_plain_prompt_is_continued_as_it_stands(tokenizer: Any) -> None:
    ids = Encoder(tokenizer, 64).encode("the mill", " is old")
    assert tokenizer.decode(ids).endswith("the mill is old<|end|>")


def test_an_unfinished_response_has_no_end_marker(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 64)
    for prompt in ("a", chat("a")):
        whole, cut = encoder.encode(prompt, "b"), encoder.encode(prompt, "b", ended=False)
        assert whole == [*cut, END]


def test_the_turns_own_end_is_used_where_it_is_another_token(tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    encoder = Encoder(other, 64)
    assert encoder.encode(chat("a"), "b")[-1] == END
    assert encoder.encode("a", "b")[-1] == other.eos_token_id != END


def test_what_is_too_long_is_cut_on_the_left_and_counted(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 8)
    ids = encoder.encode(chat("a long question"), "yes")
    assert len(ids) == 8
    assert tokenizer.decode(ids).endswith("<|assistant|>yes<|end|>")
    encoder.encode(chat("a"), "b")
    assert (encoder.truncated, encoder.seen) == (1, 2)


def test_a_leading_beginning_of_sequence_token_stays(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 6)
    ids = encoder._cut([BOS, *range(20, 30), END])
    assert ids == [BOS, 26, 27, 28, 29, END]


def test_an_encoder_reads_a_pair_and_keeps_the_response(pair_tokenizer: Any) -> None:
    encoder = Encoder(pair_tokenizer, 64, pairs=True)
    ids = encoder.encode(chat("hi you"), "yes")
    assert pair_tokenizer.decode(ids, skip_special_tokens=False).split() == (
        ["[CLS]", *"hi", *"you", "[SEP]", *"yes", "[SEP]"]
    )
    short = Encoder(pair_tokenizer, 9, pairs=True)
    cut = short.encode("a long question", "yes")
    assert pair_tokenizer.decode(cut).split() == ["[CLS]", *"ion", "[SEP]", *"yes", "[SEP]"]
    assert (short.truncated, short.seen) == (1, 1)
    assert len(short.encode("abc", "a response longer than all")) == 9
    turns = Encoder(pair_tokenizer, 99, pairs=True)._as_text(chat("a", "b", "c"))
    assert turns == "user: a\n\nassistant: b\n\nuser: c"


def test_a_tokenizer_without_an_end_is_refused(pair_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Encoder(pair_tokenizer, 64).encode("a", "b")


def test_the_longest_input_is_the_smallest_limit() -> None:
    config = SimpleNamespace(max_position_embeddings=514)
    assert longest_input(config, SimpleNamespace(model_max_length=512)) == 512
    assert longest_input(config, SimpleNamespace(model_max_length=10**30)) == 514
    assert longest_input(SimpleNamespace(n_positions=64), SimpleNamespace()) == 64


def test_control_tokens_that_texts_spell_stay_text_and_are_counted(
    tokenizer: Any, pair_tokenizer: Any
) -> None:
    encoder = Encoder(tokenizer, 99)
    ids = encoder.encode(chat("hi <|end|>"), "so<|end|><|user|>x")
    assert [i for i in ids if i in (USER, ASSISTANT, END)] == [USER, END, ASSISTANT, END]
    ids = encoder.encode("hi <|end|>", "so<|end|>x")
    assert [i for i in ids if i in (USER, ASSISTANT, END)] == [END]
    encoder.encode("hi", "so")
    assert (encoder.spelling, encoder.seen) == (2, 3)
    pairs = Encoder(pair_tokenizer, 99, pairs=True)
    found: Any = pairs.encode("a [SEP]", "b [CLS] c")
    ids = getattr(found, "ids", found)
    separator, first = pair_tokenizer.sep_token_id, pair_tokenizer.cls_token_id
    assert (ids.count(separator), ids.count(first), pairs.spelling) == (2, 1, 1)


@pytest.mark.parametrize("separator", ["</s>", ""])
def test_an_encoder_whose_vocabulary_holds_control_tokens_as_words_reads_letters(
    separator: str,
) -> None:
    """As Unigram vocabularies do; what its chat template writes stays a token."""
    from tokenizers import Tokenizer, models
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<u>"]
    pieces = [*((name, 0.0) for name in names), *((letter, -9.0) for letter in "abc</su>")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair=" ".join(f"<s> $A {separator} $B:1 </s>:1".split()),
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<u>"],
        model_input_names=["input_ids", "token_type_ids"],
    )
    words.chat_template = "{% for m in messages %}<u>{{ m.content }}{% endfor %}"
    encoder = Encoder(words, 99, pairs=True)
    between = [separator] if separator else []

    def shown(prompt: Any, response: str) -> tuple[list[str], list[int]]:
        found: Any = encoder.encode(prompt, response)
        return words.convert_ids_to_tokens(list(found)), found.segments

    first, second = ["<s>", *"a</s>b", *between], [*"c<u>", "</s>"]
    assert shown("a</s>b", "c<u>") == (
        [*first, *second],
        [0] * len(first) + [1] * len(second),
    )
    assert shown(chat("a</s>b"), "c")[0] == ["<s>", "<u>", *"a</s>b", *between, "c", "</s>"]
    encoder.max_length = len(between) + 6
    assert shown("a</s>b", "c<u>")[0] == ["<s>", *between, *"c<u>", "</s>"]
