"""How a checkpoint is asked: through its chat template, or in plain text, behind examples or not.

A base model learns in its context what is asked of it, from examples before the question (Brown et
al. 2020): none, one, or several, which `drawn` draws, another set each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from data.errors import SourceError
from data.records import Completion, Conversation, Message, Prompt, turn_text
from data.text.chat import render_input, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENT_END = "<|endoftext|>"
Item = TypeVar("Item")


class Example(NamedTuple):
    """A question with its answer."""

    question: str
    answer: str


class Form(NamedTuple):
    """What stands around questions and answers in plain text; an answer begins with a space."""

    question: str
    answer: str
    end: str


QUESTIONS = Form("Question: ", "\nAnswer:", "\n\n")
LISTS = Form("", ":", "\n")
"""A line each, as in lists of the corpus."""


def plain_prompt(prompt: Prompt) -> str:
    """Return a chat as a base model is given it: the turns as lines, ready for the next line.

    A base model has never seen the tokens of the chat template, so the template would only show
    that they confuse it. Plain text prompts are left as they are.
    """
    if isinstance(prompt, str):
        return prompt
    return "".join(turn_text(turn) + "\n" for turn in prompt)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    plain: bool,
    encoder_decoder: bool = False,
) -> list[int]:
    """Return the tokens a checkpoint is given for a prompt.

    A chat put plainly starts as documents do in pretraining: after a document end. An encoder reads
    it framed as any text.
    """
    if encoder_decoder:
        return render_input(tokenizer, plain_prompt(prompt) if plain else prompt)
    if not plain or isinstance(prompt, str):
        return render_prompt(tokenizer, prompt)
    return plain_ids(tokenizer, plain_prompt(prompt))


def with_passages(prompt: Prompt, passages: Sequence[str]) -> Prompt:
    """Return a prompt behind passages to answer from: a line each, an empty one, then the prompt.

    Of a chat they stand in its last turn; without passages a prompt is left as it is.
    """
    if not passages:
        return prompt
    front = "".join(f"{passage}\n" for passage in passages) + "\n"
    if isinstance(prompt, str):
        return front + prompt
    *before, last = prompt
    turn = last.copy()
    turn["content"] = front + last["content"]
    return [*before, turn]


def without_passages(text: str) -> str:
    """Return what a text asks behind its passages, where that is one paragraph."""
    return text.rpartition("\n\n")[2]


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


def few_shot_prompt(question: str, examples: Sequence[Example], form: Form = QUESTIONS) -> str:
    """Return a question behind worked examples, ready for its answer."""
    shown = (
        f"{form.question}{one.question}{form.answer} {one.answer}{form.end}" for one in examples
    )
    return f"{''.join(shown)}{form.question}{question}{form.answer}"


def behind_examples(
    record: Conversation | Completion, examples: Sequence[Conversation | Completion]
) -> Conversation | Completion:
    """Return a demonstration behind others, which are read and not learned.

    They are earlier turns of a conversation, behind its system's, or text before a plain prompt.

    Raises:
        SourceError: some are conversations, others plain prompts.
    """
    if any(type(one) is not type(record) for one in examples):
        raise SourceError(
            "shots: conversations and plain prompts can't be examples of each other; learn them "
            "in stages of their own"
        )
    if isinstance(record, Completion):
        shown = (f"{one.prompt}{one.completion}{QUESTIONS.end}" for one in examples
                 if isinstance(one, Completion))  # fmt: skip
        return replace(record, prompt="".join(shown) + record.prompt)
    turns = [turn for one in examples if isinstance(one, Conversation) for turn in one.messages]
    before: list[Message] = [
        {**turn, "weight": 0} if turn["role"] == "assistant" else turn
        for turn in turns
        if turn["role"] != "system"
    ]
    lead = int(record.messages[0]["role"] == "system")
    return replace(record, messages=[*record.messages[:lead], *before, *record.messages[lead:]])


def drawn(
    pool: Sequence[Item], count: int, *, draw: int, seed: int
) -> Callable[[Item], list[Item]]:
    """Return what gives the examples that one draw shows before a question, never that question.

    All questions of a draw are shown the same examples, in the same order; one that is among them
    is shown the next in its stead.

    Args:
        pool: what is drawn from.
        count: examples before a question.
        draw: which draw, from 0.
        seed: of all draws.

    Raises:
        SourceError: there are not so many others.
    """
    order = random.Random(f"shots/{seed}/{draw}").sample(pool, min(count + 1, len(pool)))

    def before(asked: Any) -> list[Item]:
        shown = [one for one in order if one != asked][:count]
        if len(shown) < count:
            raise SourceError(
                f"shots: {count} examples are to stand before each question, and there are "
                f"{len(shown)} others to draw from; ask for fewer, or name more in `examples`"
            )
        return shown

    return before
