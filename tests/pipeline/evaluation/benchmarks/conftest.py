"""A tiny checkpoint to ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.contract.console import Console
from pipeline.evaluation.benchmarks.asking import Subject


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
