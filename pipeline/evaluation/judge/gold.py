"""The embedded world's annotator as a judge of answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.records import PromptRow

Judge = Callable[["PromptRow", str], tuple[float | None, dict[str, Any] | None]]


def gold_judge(world_seed: int | None) -> Judge:
    """Return what gives an answer's score and the rest of its assessment; None of both without."""
    if world_seed is None:
        return lambda row, text: (None, None)
    from data.world.annotator import GoldAnnotator

    annotator = GoldAnnotator(world_seed)

    def judge(row: PromptRow, text: str) -> tuple[float | None, dict[str, Any] | None]:
        assessment = dataclasses.asdict(annotator.assess(row.prompt, text))
        return float(assessment.pop("score")), assessment

    return judge
