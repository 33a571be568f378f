"""What everything that scores a response has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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


def require_same_length(prompts: Sequence[object], responses: Sequence[object]) -> None:
    """Refuse prompts and responses that don't come in pairs."""
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses to score")
