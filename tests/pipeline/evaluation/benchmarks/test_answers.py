"""Answers end where one of some texts does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.evaluation.benchmarks.answers import stopping, write_answers
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.generation.generate import Sampling


def test_a_text_ends_an_answer_and_is_no_part_of_it(subject: Callable[..., Subject]) -> None:
    mine = subject(plain=True)
    prompts = [mine.context(question) for question in ("Who?", "Where?", "When is it?")]
    sampling = Sampling(max_new_tokens=24)
    given: dict[str, Any] = {"sampling": sampling, "label": "answers", "seed": 3}
    free = write_answers(mine, prompts, **given)
    for place, one in enumerate(free):
        stop = one.text[5:7]
        cut = write_answers(mine, prompts, **given, until=["", stop])[place]
        assert cut.text == one.text[: one.text.index(stop)]
        assert cut.ended and cut.tokens < one.tokens


def test_a_text_is_seen_however_its_bytes_are_cut_into_tokens(
    subject: Callable[..., Subject],
) -> None:
    tokenizer = subject().tokenizer
    stopped = stopping(tokenizer, ["Question:", "é\n"])
    for text, expected in (("A b Question:", True), ("Question", False), ("caf é\n", True)):
        bytewise = [i for char in text for i in tokenizer(char)["input_ids"]]
        assert stopped(tokenizer(text)["input_ids"]) is expected
        assert stopped(bytewise) is expected


def test_a_prompt_too_long_for_the_context_loses_its_beginning(
    subject: Callable[..., Subject],
) -> None:
    lines: list[str] = []
    mine = subject(plain=True, context=32, lines=lines)
    ids = mine.context("Where is the mill? " * 9)
    given: dict[str, Any] = {
        "sampling": Sampling(max_new_tokens=8, temperature=0.0),
        "label": "quiz",
    }
    assert write_answers(mine, [ids], **given) == write_answers(mine, [ids[-24:]], **given)
    assert "1 of 1 prompts are longer than the context of 32 tokens less 8" in lines[0]
    assert len(lines) == 1
