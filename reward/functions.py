"""Rewards that a user writes in Python.

A file of the user registers functions, and `rlhf run RECIPE --plugin FILE` loads it; a recipe
names a function alone, `{function: polite}`, so that recipes hold no code (`reward.plugins`):

    from reward.functions import reward

    @reward("polite")
    def polite(prompts, responses):
        return [1.0 if "please" in text.lower() else 0.0 for text in responses]

A function is called once an update, on each process with its share of the episodes. It is given
the prompts (texts, or lists of messages) and the responses, and returns one number each: a list,
an array or a tensor. It may name more parameters: `rows` (the other columns of each prompt's row,
such as `rows[i]["answer"]`), `tokens` (tokens of each response), `ended` (whether it ended by
itself), and any that the recipe gives in `options`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data.errors import RecipeError, RewardError
from reward.plugins import Function, Registry
from reward.scorer import Facts, require_same_length, require_scores

if TYPE_CHECKING:
    from data.records import Prompt

_FACTS = ("rows", "tokens", "ended")

REWARDS = Registry("reward", label="reward function", example="polite")
"""The reward functions by their names."""


def reward(name: str) -> Callable[[Function], Function]:
    """Register a function as the reward of this name; the function itself stays as it is.

    Raises:
        UsageError: the name is empty, or another function has it.
    """
    return REWARDS.decorator(name)


def function(name: str, /, **options: Any) -> FunctionReward:
    """Return a registered function as a scorer.

    Raises:
        RecipeError: no such function is registered, or it does not take these options.
    """
    known = REWARDS.find(name)
    parameters = inspect.signature(known.function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    facts = tuple(fact for fact in _FACTS if (fact in parameters or open_ended))
    given = {fact: None for fact in facts if fact not in options}
    try:
        inspect.signature(known.function).bind([], [], **given, **options)
    except TypeError as error:
        raise RecipeError(
            f"reward function '{name}' ({known.place}) does not take prompts, "
            f"responses and the options {', '.join(options) or '(none)'}: {error}"
        ) from None
    return FunctionReward(name, known.function, known.place, tuple(given), options)


@dataclass(frozen=True)
class FunctionReward:
    """A function of the user; a `Scorer`.

    Attributes:
        name: what it is registered as.
        function: takes prompts, responses, and what it named.
        place: file and line where it stands.
        facts: which facts it wants to be given.
        options: further arguments.
    """

    name: str
    function: Callable[..., Any]
    place: str
    facts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return what the function gives for each response, without facts."""
        return self.score_informed(prompts, responses, Facts(rows=[{} for _ in prompts]))

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return what the function gives for each response.

        Raises:
            RewardError: the function raises, wants what is not known here, or does not give one
                finite number a response.
        """
        require_same_length(prompts, responses)
        origin = f"reward function '{self.name}' ({self.place})"
        known = {name: getattr(facts, name) for name in self.facts}
        try:
            given = self.function(list(prompts), list(responses), **known, **self.options)
        except Exception as error:
            raise RewardError(f"{origin} failed with {type(error).__name__}: {error}") from error
        scores = require_scores(given, count=len(responses), origin=origin)
        for place, score in enumerate(scores):
            if not math.isfinite(score):
                raise RewardError(
                    f"{origin} gave {score} for response {place} of {len(responses)} "
                    f"({responses[place]!r:.60}); finite numbers are needed"
                )
        return scores
