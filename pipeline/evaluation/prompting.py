"""How a checkpoint is asked: through its chat template, or in plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.records import Prompt, turn_text
from data.text.chat import render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENT_END = "<|endoftext|>"


def plain_prompt(prompt: Prompt) -> str:
    """Return a chat as a base model is given it: the turns as lines, ready for the next line.

    A base model has never seen the tokens of the chat template, so the template would only show
    that they confuse it. Plain text prompts are left as they are.
    """
    if isinstance(prompt, str):
        return prompt
    return "".join(turn_text(turn) + "\n" for turn in prompt)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, plain: bool) -> list[int]:
    """Return the tokens a checkpoint is given for a prompt.

    A chat put plainly starts as documents do in pretraining: after a document end.
    """
    if not plain or isinstance(prompt, str):
        return render_prompt(tokenizer, prompt)
    return plain_ids(tokenizer, plain_prompt(prompt))


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text that starts as documents do in pretraining."""
    ids = render_prompt(tokenizer, text)
    return ids if ids[0] in tokenizer.all_special_ids else document_end_ids(tokenizer) + ids


def document_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that ends documents in pretraining, where the tokenizer has one."""
    # An unknown token has the unknown one's id, or none; the vocabulary itself is built every time.
    document_end = tokenizer.convert_tokens_to_ids(DOCUMENT_END)
    if document_end is None or tokenizer.convert_ids_to_tokens(document_end) != DOCUMENT_END:
        return []
    return [int(document_end)]
