"""Scores that are computed, not learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from data.errors import RecipeError, nearest
from reward.scorers import Scorer, require_same_length

if TYPE_CHECKING:
    from data.records import Prompt


@dataclass
class Sentiment:
    """How glad a text sounds: VADER's compound score, from -1 to 1.

    A cheap, fixed stand-in for the sentiment classifier of Ziegler et al. 2019
    (lm-human-preferences), which scored continuations of book and review passages.
    """

    name: str = "sentiment"
    _analyzer: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise RecipeError(
                "the sentiment rule needs vaderSentiment; install it with "
                "`pip install 'rlhf-pipeline[sentiment]'` or `pip install vaderSentiment`"
            ) from error
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return the sentiment of each response alone; an empty one is neutral, 0."""
        require_same_length(prompts, responses)
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in responses]


@dataclass(frozen=True)
class Length:
    """How near a response comes to a length: 0 at the target, -1 at nothing or twice as much.

    Attributes:
        target: length asked for, in units.
        unit: "words" or "characters".
    """

    target: int
    unit: Literal["words", "characters"] = "words"
    name: str = "length"

    def __post_init__(self) -> None:
        if self.target < 1:
            raise RecipeError(f"the length rule needs a target above 0, not {self.target}")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return minus the distance to the target, as a share of the target."""
        require_same_length(prompts, responses)
        lengths = [len(text.split()) if self.unit == "words" else len(text) for text in responses]
        return [-abs(length - self.target) / self.target for length in lengths]


RULES: Mapping[str, Callable[..., Scorer]] = {"sentiment": Sentiment, "length": Length}


def rule(name: str, **options: Any) -> Scorer:
    """Return a rule by its name.

    Raises:
        RecipeError: no rule has this name, or it does not take these options.
    """
    if name not in RULES:
        raise RecipeError(
            f"unknown rule '{name}'; known: {', '.join(RULES)}.{nearest(name, RULES)}"
        )
    try:
        return RULES[name](**options)
    except TypeError as error:
        given = ", ".join(options) or "none"
        raise RecipeError(f"rule '{name}' does not take these options ({given}): {error}") from None
