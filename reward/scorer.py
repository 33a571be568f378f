"""What everything that scores a response has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from data.errors import RewardError

if TYPE_CHECKING:
    from data.records import Prompt


@runtime_checkable
class Scorer(Protocol):
    """Gives each response a number, higher is better.

    The reward model is one, a rule is one; PPO, `select` and evaluation take any.
    """

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return the score of each response to the prompt at the same place."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known of responses beside their text, one entry a response.

    Attributes:
        rows: the other columns of the prompt's row, such as its `answer`.
        tokens: tokens of the response, its end included; None where nobody counted them.
        ended: whether the response ended by itself; None where nobody knows.
    """

    rows: Sequence[Mapping[str, Any]]
    tokens: Sequence[int] | None = None
    ended: Sequence[bool] | None = None


@runtime_checkable
class InformedScorer(Protocol):
    """A scorer that looks at more than the two texts."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score without any facts, or say which one is missing."""
        ...

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return the score of each response, given the facts."""
        ...


def scores_of(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    facts: Facts | None = None,
) -> list[float]:
    """Score with any scorer, and give it the facts if it looks at them.

    Raises:
        RewardError: the scorer does not give one number a response.
    """
    if facts is not None and isinstance(scorer, InformedScorer):
        scores = scorer.score_informed(prompts, responses, facts)
    else:
        scores = scorer.score(prompts, responses)
    return require_scores(scores, count=len(responses), origin=f"reward {scorer.name}")


def require_scores(scores: Any, *, count: int, origin: str) -> list[float]:
    """Return scores as a list of floats, if there is one number a response.

    Whether they are finite is up to the caller: one that knows the texts can show the one at fault.

    Args:
        scores: list, tuple, array or tensor.
        count: number of responses.
        origin: who gave them, for the sentence.

    Raises:
        RewardError: another count, or something that is no number.
    """
    given = scores.tolist() if hasattr(scores, "tolist") else scores
    if not isinstance(given, (list, tuple)):
        raise RewardError(
            f"{origin} gave a {type(scores).__name__}, not a list of one number a response"
        )
    if len(given) != count:
        raise RewardError(
            f"{origin} gave {len(given)} scores for {count} responses; one each is needed"
        )
    numbers = []
    for place, score in enumerate(given):
        number = score.item() if hasattr(score, "item") else score
        try:
            if not isinstance(number, Real):
                raise TypeError("no number")
            numbers.append(float(number))
        except (TypeError, OverflowError):  # an int may be larger than any float
            raise RewardError(
                f"{origin} gave {number!r:.40} for response {place} of {count}; a number is needed"
            ) from None
    return numbers


def require_same_length(prompts: Sequence[object], responses: Sequence[object]) -> None:
    """Refuse prompts and responses that don't come in pairs."""
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses to score")
