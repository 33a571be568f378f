"""Prompts as checkpoints get them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data.records import chat
from pipeline.evaluation.prompting import plain_prompt, prompt_ids


def test_a_chat_put_plainly_is_the_question_and_a_line_break() -> None:
    assert plain_prompt(chat("Who bakes?")) == "Who bakes?\n"
    assert plain_prompt("once upon") == "once upon"


def test_a_base_model_sees_a_document_start_and_no_chat_token(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = tiny_tokenizer()
    ids = prompt_ids(tokenizer, chat("Who bakes?"), plain=True)
    assert tokenizer.decode(ids) == "<|endoftext|>Who bakes?\n"
    shown = tokenizer.decode(prompt_ids(tokenizer, chat("Who bakes?"), plain=False))
    assert shown == "<|user|>Who bakes?<|end|><|assistant|>"
    assert prompt_ids(tokenizer, "Who", plain=True) == prompt_ids(tokenizer, "Who", plain=False)
