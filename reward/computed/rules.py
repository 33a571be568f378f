"""Scores that are computed, not learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal

from data.errors import RecipeError, RewardError, nearest
from reward.scorer import Facts, Scorer, require_same_length

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


@dataclass(frozen=True)
class Pattern:
    """Whether a response has a form: 1 where a regular expression matches, else 0.

    Attributes:
        pattern: regular expression of Python; `(?s)` in front lets a dot match line breaks.
        whole: the response must match from its start to its end, white space around it apart.
    """

    pattern: str
    whole: bool = False
    name: str = "regex"

    def __post_init__(self) -> None:
        _compiled(self.pattern, "regex", "pattern")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return 1 for each response that matches, 0 for the others."""
        require_same_length(prompts, responses)
        expression = re.compile(self.pattern)
        if self.whole:
            return [float(expression.fullmatch(text.strip()) is not None) for text in responses]
        return [float(expression.search(text) is not None) for text in responses]


@dataclass(frozen=True)
class Repetition:
    """How little a response repeats itself: minus the share of its n-grams that came before.

    0 where no run of `n` words comes twice, towards -1 where one comes again and again.

    Attributes:
        n: words of a run.
    """

    n: int = 3
    name: str = "repetition"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise RecipeError(f"the repetition rule needs n above 0, not {self.n}")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return minus the share of repeated runs; fewer words than `n` repeat nothing."""
        require_same_length(prompts, responses)
        return [-self._share(text.lower().split()) for text in responses]

    def _share(self, words: list[str]) -> float:
        runs = [tuple(words[at : at + self.n]) for at in range(len(words) - self.n + 1)]
        return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass(frozen=True)
class LengthPenalty:
    """Minus the number of a response's tokens, its end included; the weight is the price of one.

    Attributes:
        free: so many tokens cost nothing.
    """

    free: int = 0
    name: str = "length_penalty"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Refuse to guess the tokens.

        Raises:
            RewardError: always; texts alone don't tell how many tokens the policy drew.
        """
        raise RewardError(
            "the length_penalty rule counts the policy's tokens, which are not known here; "
            "use the length rule, which counts words"
        )

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return minus the tokens above `free`."""
        require_same_length(prompts, responses)
        if facts.tokens is None:
            return self.score(prompts, responses)
        return [-float(max(0, count - self.free)) for count in facts.tokens]


@dataclass(frozen=True)
class Answer:
    """Whether a response gives the answer that its prompt's row holds: 1, else 0.

    Answers are compared without regard to case, white space, and punctuation around them; numbers
    by their value, so that 1,000 is 1000.0. Of rows with a completion or an assistant's last turn,
    that is `answer`.

    Attributes:
        column: column of the row; a list in it holds answers any of which will do.
        pattern: regular expression whose last match in the response is its answer (its first
            group, if it has one); the whole response when not given.
        reference_pattern: the same for the column, such as `#### (.+)`.
        missing: score of a response whose row has no answer; None refuses such rows.
    """

    column: str = "answer"
    pattern: str | None = None
    reference_pattern: str | None = None
    missing: float | None = None
    name: str = "answer"

    def __post_init__(self) -> None:
        for field_name in ("pattern", "reference_pattern"):
            if getattr(self, field_name) is not None:
                _compiled(getattr(self, field_name), "answer", field_name)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score responses to prompts whose rows hold nothing else."""
        return self.score_informed(prompts, responses, Facts(rows=[{} for _ in prompts]))

    def score_informed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], facts: Facts
    ) -> list[float]:
        """Return 1 for each response with the right answer, 0 for the others.

        Raises:
            RewardError: a row has no answer, and `missing` is not set.
        """
        require_same_length(prompts, responses)
        return [self._one(row, text) for row, text in zip(facts.rows, responses, strict=True)]

    def _one(self, row: Mapping[str, Any], response: str) -> float:
        given = row.get(self.column)
        if given is None or given == "":
            if self.missing is not None:
                return self.missing
            raise RewardError(
                f"the answer rule finds no column '{self.column}' in a prompt's row (it has "
                f"{', '.join(row) or 'none'}); name the right one with `column`, or set `missing` "
                "to the score of responses to such prompts"
            )
        accepted = given if isinstance(given, (list, tuple)) else [given]
        answer = _last(self.pattern, response)
        references = [_last(self.reference_pattern, str(answer)) for answer in accepted]
        return float(answer is not None and any(_same(answer, r) for r in references if r))


def _last(pattern: str | None, text: str) -> str | None:
    """Return the last match of a pattern, its first group if it has one; all without a pattern."""
    if pattern is None:
        return text
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    groups = matches[-1].groups()
    return groups[0] if groups else matches[-1].group()


def _same(ours: str, theirs: str) -> bool:
    numbers = _number(ours), _number(theirs)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _plain(ours) == _plain(theirs)


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(_plain(text).replace(",", ""))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _plain(text: str) -> str:
    # A sign or a dot in front belongs to a number.
    marks = " ,;:!?'\"`$*()"
    return " ".join(text.casefold().split()).lstrip(marks).rstrip(marks + ".")


def _compiled(pattern: str, rule_name: str, option: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"rule '{rule_name}': {option} {pattern!r} is no regular expression: {error}"
        ) from None


RULES: Mapping[str, Callable[..., Scorer]] = {
    "answer": Answer,
    "length": Length,
    "length_penalty": LengthPenalty,
    "regex": Pattern,
    "repetition": Repetition,
    "sentiment": Sentiment,
}


def rule(name: str, /, **options: Any) -> Scorer:
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
