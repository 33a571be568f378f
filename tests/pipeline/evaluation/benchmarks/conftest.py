"""A tiny checkpoint to ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from data.records import Prompt
from pipeline.contract.console import Console
from pipeline.evaluation.benchmarks.asking import Subject
from pipeline.generation.tools.calls import Asked, Call
from pipeline.generation.tools.toolbox import ToolBox, find_tool


class _Always:
    """A form of calls that every response makes with its second token, whatever it is."""

    def told(self, prompt: Prompt) -> Prompt:
        return prompt

    def asked(self, ids: Sequence[int], begin: int, *, ended: bool) -> list[Asked]:
        return [Asked("calculator", ["6*7"])] if len(ids) == 2 and not ended else []

    def clean(self, result: str) -> str:
        return result

    def answer(self, calls: Sequence[Call]) -> list[int]:
        return [70]

    def text(self, calls: Sequence[Call]) -> None:
        return None


@pytest.fixture
def calling(subject: Callable[..., Subject]) -> Subject:
    """Return a checkpoint whose answers call a calculator."""
    mine = subject()
    box = ToolBox([find_tool("calculator")], mine.tokenizer)
    box.form = _Always()
    return replace(mine, tools=box)


@pytest.fixture
def subject(
    tiny_tokenizer: Callable[..., Any], tiny_policy: Callable[..., Any]
) -> Callable[..., Subject]:
    """Return a builder of untrained checkpoints: subject(plain=False, lines=None, **shape)."""

    def build(*, plain: bool = False, lines: list[str] | None = None, **shape: Any) -> Subject:
        tokenizer = tiny_tokenizer()
        console = Console(quiet=True)
        given = {"context": 256, **shape}
        return Subject(
            name="mine",
            model=tiny_policy(tokenizer, **given).eval(),
            tokenizer=tokenizer,
            plain=plain,
            batch_size=8,
            seed=0,
            progress=lambda total, label, unit: console.progress(total, label, unit=unit),
            say=([] if lines is None else lines).append,
        )

    return build
