"""Answers that a checkpoint writes to prompts, by the own decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from data.errors import UsageError
from data.text.continuation import continuation_text
from data.text.prompting import document_end_ids
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.generation.generate import Sample, Sampling, generate, turns_text
from pipeline.models.load import context_length, eos_ids
from pipeline.models.seq2seq import has_room, is_encoder_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GREEDY = 0.0


class Answer(NamedTuple):
    """What was written.

    Attributes:
        text: without special tokens.
        tokens: how many.
        ended: whether it ended.
        calls: those of tools; None where none may be called.
    """

    text: str
    tokens: int
    ended: bool
    calls: list[dict[str, Any]] | None = None


def write_answers(
    subject: Subject,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling,
    label: str,
    seed: int = 0,
    until: Sequence[str] = (),
    alone: bool = False,
) -> list[Answer]:
    """Return an answer to each prompt.

    Args:
        subject: who answers.
        prompts: token ids.
        sampling: how tokens are drawn; a temperature of 0 takes the likeliest.
        label: of the progress bar.
        seed: of the draws.
        until: texts at which an answer ends; they are no part of it.
        alone: decode answers without their prompts, as lm-eval does.

    Raises:
        UsageError: the context has no room for so many new tokens.
    """
    tokenizer = subject.tokenizer
    endings = eos_ids(tokenizer, subject.model)
    if subject.plain:
        endings += document_end_ids(tokenizer)
    stops = [text for text in until if text]
    # A token of its own shows in no text; it ends an answer as the tokenizer's end does.
    tokens = tokenizer.get_added_vocab()
    endings += [int(tokens[text]) for text in stops if text in tokens]
    prompts = _fitting(subject, prompts, sampling.max_new_tokens, label)
    with subject.progress(len(prompts), label, "answers") as bar, torch.inference_mode():
        samples = generate(
            subject.model,
            prompts,
            sampling=sampling,
            eos_token_ids=sorted(set(endings)),
            pad_token_id=int(tokenizer.pad_token_id or 0),
            generator=torch.Generator().manual_seed(seed),
            batch_size=subject.batch_size,
            stop=stopping(tokenizer, stops) if stops else None,
            tools=subject.tools,
            wide=True,
            advance=bar.advance,
            say=subject.say,
        )
    answers = []
    for ids, sample in zip(prompts, samples, strict=True):
        text = _text(tokenizer, [] if alone else ids, sample)
        ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        text = text[: min(ends, default=len(text))]
        calls = None if subject.tools is None else [*map(asdict, sample.calls)]
        answers.append(Answer(text, len(sample.token_ids), sample.ended, calls))
    return answers


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], sample: Sample) -> str:
    if sample.given:
        return turns_text(tokenizer, sample)
    return continuation_text(tokenizer, [] if sample.alone else ids, sample.token_ids)


def _fitting(
    subject: Subject, prompts: Sequence[list[int]], new: int, label: str
) -> Sequence[list[int]]:
    """Return prompts without their beginning where the context has no room for all of them."""
    context = context_length(subject.model)
    if context is None:
        return prompts
    paired = is_encoder_decoder(subject.model)
    # An encoder has all places for the prompt, where the decoder has enough for the answer.
    room = context if paired and has_room(context, 1, new, encoder_decoder=True) else context - new
    if room < 1:
        raise UsageError(
            f"{label}: {new} new tokens are asked for, and the context of {subject.name} holds "
            f"{context}; ask for fewer, or use a model with a longer context"
        )
    lost = sum(len(ids) > room for ids in prompts)
    if lost:
        subject.say(
            f"  {subject.name}: {label}: {lost} of {len(prompts)} prompts are longer than the "
            f"context of {context} tokens less {new} new ones; the beginning of them was left out"
        )
    return [ids[-room:] for ids in prompts]


def stopping(
    tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]
) -> Callable[[list[int]], bool]:
    """Return what tells whether a response's last token completes one of some texts."""
    # Every token spells a byte or more, so that so many of the last ones hold the longest text.
    reach = max(len(text.encode()) for text in stops) + 1
    last = {text[-1] for text in stops}

    def text_of(ids: list[int]) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    @cache
    def can_end(token: int) -> bool:
        # Most tokens hold no last character of any text. Alone, a part of a character shows as
        # another one, and a space may show as nothing.
        text = text_of([token])
        return not text or "\ufffd" in text or " " in last or not last.isdisjoint(text)

    def stopped(ids: list[int]) -> bool:
        if not can_end(ids[-1]):
            return False
        tail = text_of(ids[-reach:])
        return any(text in tail for text in stops)

    return stopped
