"""The bias of a reward model: held-out demonstrations score 0 on average.

The ranking loss does not see a constant added to all scores, so the level of the scores is
arbitrary until it is set. InstructGPT (section 3.5) sets it so that the labelers' demonstrations
have a mean score of 0 before PPO; a positive score then means "better than what people wrote".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import TrainingError
from data.records import Completion, Conversation, Prompt


@dataclass(frozen=True)
class Calibration:
    """What the bias was taken from.

    Attributes:
        bias: to be added to every score.
        deviation: standard deviation of the demonstrations' scores.
        n: number of demonstrations.
    """

    bias: float
    deviation: float
    n: int


def demonstration_bias(scores: Sequence[float]) -> Calibration:
    """Return the bias that brings the mean of these scores to 0.

    Args:
        scores: of held-out demonstrations, without bias; none at all give no bias.

    Raises:
        TrainingError: a score is not finite.
    """
    if not scores:
        return Calibration(bias=0.0, deviation=0.0, n=0)
    if not all(math.isfinite(s) for s in scores):
        raise TrainingError("a demonstration's score is not finite; the reward model is broken")
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((s - mean) ** 2 for s in scores) / len(scores)
    return Calibration(bias=-mean, deviation=math.sqrt(variance), n=len(scores))


def demonstration_rows(
    shown: Iterable[tuple[Prompt, str]], scores: Iterable[float]
) -> Iterator[dict[str, Any]]:
    """Yield demonstrations as JSON; minus the mean of `score_without_bias` is the bias again."""
    for (prompt, response), score in zip(shown, scores, strict=True):
        yield {"prompt": prompt, "response": response, "score_without_bias": score}


def demonstration_parts(row: Conversation | Completion) -> tuple[Prompt, str]:
    """Return a demonstration as a prompt and the response a person wrote."""
    if isinstance(row, Completion):
        return row.prompt, row.completion
    return list(row.messages[:-1]), row.messages[-1]["content"]
