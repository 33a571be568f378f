"""What is said of checkpoints that are asked otherwise than they say themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from data.records import Message
from data.text.prompting import prompt_ids
from pipeline.evaluation.judge.checkpoint_notes import asking_notes

CHAT = [Message(role="user", content="Who bakes?")]


@pytest.fixture
def with_bos(tiny_tokenizer: Callable[..., Any]) -> Any:
    """Return a tokenizer that puts bos in front of every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def notes(tokenizer: Any, *prompts: Any, plain: bool = False) -> list[str]:
    as_text = plain or not tokenizer.chat_template
    ids = [prompt_ids(tokenizer, prompt, plain=as_text) for prompt in prompts]
    return asking_notes(tokenizer, prompts, ids, plain=plain)


def test_a_sound_checkpoint_has_no_note(tiny_tokenizer: Callable[..., Any]) -> None:
    assert notes(tiny_tokenizer(), CHAT, "Once") == []


def test_a_missing_template_is_told_unless_plain_text_is_meant(
    tiny_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert notes(tokenizer, "Once") == notes(tokenizer, CHAT, plain=True) == []
    [note] = notes(tokenizer, CHAT, "Once", CHAT)
    assert note.startswith("it has no chat template, so 2 chats were put to it as plain text")


def test_bos_twice_and_bos_left_out_are_told(with_bos: Any) -> None:
    [note] = notes(with_bos, CHAT, "Once")
    assert note.startswith("<|endoftext|> is missing at the start of 1 chat: its tokenizer")
    own = with_bos.chat_template
    with_bos.chat_template = "<|endoftext|>" + own
    assert notes(with_bos, CHAT, "Once") == []
    with_bos.chat_template = "{{ bos_token }}{{ bos_token }}" + own
    [note] = notes(with_bos, CHAT, CHAT)
    assert note.startswith("<|endoftext|> stands twice at the start of 2 prompts")
