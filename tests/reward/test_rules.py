"""Scores that are computed."""

from __future__ import annotations

import sys

import pytest

from data.errors import RecipeError
from reward.rules import Length, Sentiment, rule
from reward.scorers import Scorer


def test_length_is_best_at_the_target() -> None:
    scores = Length(target=4).score(["q"] * 4, ["a b c d", "", "a b", "a b c d e f g h"])
    assert scores == [0.0, -1.0, -0.5, -1.0]
    assert Length(target=2, unit="characters").score(["q"], ["abc"]) == [-0.5]


def test_rules_are_scorers_found_by_name() -> None:
    assert isinstance(rule("length", target=3), Scorer)
    with pytest.raises(RecipeError, match="Did you mean 'length'"):
        rule("lenght")
    with pytest.raises(RecipeError, match="does not take these options"):
        rule("length", goal=3)
    with pytest.raises(RecipeError, match="above 0"):
        rule("length", target=0)


def test_prompts_and_responses_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 responses"):
        Length(target=1).score(["a", "b"], ["c"])


def test_sentiment_tells_glad_from_sad() -> None:
    pytest.importorskip("vaderSentiment")
    glad, sad, empty = Sentiment().score(["q"] * 3, ["I love it, great!", "Awful and sad.", ""])
    assert -1 <= sad < empty == 0.0 < glad <= 1


def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(RecipeError, match=r"pip install 'rlhf-pipeline\[sentiment\]'"):
        Sentiment()
