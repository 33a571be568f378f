"""Prompts as checkpoints get them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from data.errors import SourceError
from data.records import Completion, Conversation, chat
from data.text.prompting import (
    LISTS,
    Example,
    behind_examples,
    document_end_ids,
    few_shot_prompt,
    plain_prompt,
    prompt_ids,
)
from data.text.tokenizer import train_tokenizer


def test_a_chat_put_plainly_is_the_question_and_a_line_break() -> None:
    assert plain_prompt(chat("Who bakes?")) == "Who bakes?\n"
    assert plain_prompt("once upon") == "once upon"


def test_examples_stand_before_a_question_in_its_own_form() -> None:
    shown = [Example("Who bakes?", "Ada"), Example("Who fishes?", "Bo")]
    assert few_shot_prompt("Who weaves?", shown) == (
        "Question: Who bakes?\nAnswer: Ada\n\nQuestion: Who fishes?\nAnswer: Bo\n\n"
        "Question: Who weaves?\nAnswer:"
    )
    assert few_shot_prompt("Ada", [Example("Bo", "goat")], LISTS) == "Bo: goat\nAda:"
    assert few_shot_prompt("Ada", [], LISTS) == "Ada:"


def test_a_base_model_sees_a_document_start_and_no_chat_token() -> None:
    tokenizer = train_tokenizer(["Who bakes?"], vocabulary_size=300)
    ids = prompt_ids(tokenizer, chat("Who bakes?"), plain=True)
    assert tokenizer.decode(ids) == "<|endoftext|>Who bakes?\n"
    shown = tokenizer.decode(prompt_ids(tokenizer, chat("Who bakes?"), plain=False))
    assert shown == "<|user|>Who bakes?<|end|><|assistant|>"
    assert prompt_ids(tokenizer, "Who", plain=True) == prompt_ids(tokenizer, "Who", plain=False)


@pytest.mark.parametrize(
    ("vocabulary", "unknown", "found"),
    [
        ({"a": 0, "<|endoftext|>": 1}, None, [1]),
        ({"a": 0, "<|endoftext|>": 1}, "<|endoftext|>", [1]),  # as GPT-2's
        ({"a": 0, "<unk>": 1}, "<unk>", []),
        ({"a": 0}, None, []),
    ],
)
def test_a_document_end_is_no_unknown_token(
    vocabulary: dict[str, int], unknown: str | None, found: list[int]
) -> None:
    model = WordLevel(vocabulary, unk_token=unknown or "a")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token=unknown)
    assert document_end_ids(tokenizer) == found


def test_demonstrations_stand_behind_others_that_are_not_learned() -> None:
    examples = [Conversation(chat(f"q{i}", f"a{i}", system="s")) for i in (1, 2)]
    made = behind_examples(Conversation(chat("q", "a", system="mine")), examples)
    assert isinstance(made, Conversation)
    said = [(turn["role"], turn["content"], turn.get("weight")) for turn in made.messages]
    assert said == [
        ("system", "mine", None), ("user", "q1", None), ("assistant", "a1", 0),
        ("user", "q2", None), ("assistant", "a2", 0), ("user", "q", None), ("assistant", "a", None),
    ]  # fmt: skip
    plain = behind_examples(Completion("q:", " a"), [Completion("r:", " b")])
    assert plain == Completion("r: b\n\nq:", " a")
    with pytest.raises(SourceError, match="can't be examples of each other"):
        behind_examples(plain, examples)
