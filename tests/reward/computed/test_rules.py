"""Scores that are computed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import RecipeError, RewardError
from reward.computed.rules import Length, Repetition, Sentiment, rule
from reward.scorer import Facts, Scorer, scores_of


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


def test_a_form_is_there_or_not() -> None:
    tagged = rule("regex", pattern=r"(?s)<think>.*</think>\s*\S+", whole=True)
    texts = [" <think>a\nb</think> 4\n", "so <think>a</think> 4", "4"]
    assert tagged.score(["q"] * 3, texts) == [1.0, 0.0, 0.0]
    anywhere = rule("regex", pattern=r"<think>.*</think>")
    assert anywhere.score(["q"] * 3, texts) == [0.0, 1.0, 0.0]  # a dot is no line break
    with pytest.raises(RecipeError, match="pattern '\\(' is no regular expression"):
        rule("regex", pattern="(")


def test_repetition_by_hand() -> None:
    # "a b c", "b c a", "c a b", "a b c": one of four came before.
    scores = Repetition().score(["q"] * 4, ["a b c A B C", "a b", "", "x x x x x x"])
    assert scores == pytest.approx([-0.25, 0.0, 0.0, -0.75])
    assert Repetition(n=1).score(["q"], ["no no no yes"]) == [-0.5]
    with pytest.raises(RecipeError, match="n above 0"):
        rule("repetition", n=0)


@given(st.text(alphabet="ab ", max_size=40), st.integers(1, 4))
def test_repetition_stays_in_its_range(text: str, n: int) -> None:
    (score,) = Repetition(n=n).score(["q"], [text])
    assert -1 < score <= 0


def test_the_length_penalty_counts_tokens_above_the_free_ones() -> None:
    facts = Facts(rows=[{}] * 3, tokens=[2, 3, 10])
    penalty = rule("length_penalty", free=3)
    assert scores_of(penalty, ["q"] * 3, ["a", "b", "c"], facts) == [0.0, 0.0, -7.0]
    with pytest.raises(RewardError, match="not known here"):
        scores_of(penalty, ["q"], ["a"], Facts(rows=[{}]))


@pytest.mark.parametrize(
    ("response", "answer", "options", "expected"),
    [
        ("4", "4", {}, 1.0),
        (" 4.0. ", 4, {}, 1.0),
        ("1,000", "1000", {}, 1.0),
        ("$0.5", ".50", {}, 1.0),
        ("-4", "4", {}, 0.0),
        ("It is 4", "4", {}, 0.0),
        ("It is 4, no 5", "5", {"pattern": r"-?\d+"}, 1.0),
        ("It is 4, no 5", "4", {"pattern": r"-?\d+"}, 0.0),
        (r"so \boxed{x + 1}", "X  + 1", {"pattern": r"\\boxed\{(.*?)\}"}, 1.0),
        ("none at all", "4", {"pattern": r"\d+"}, 0.0),
        ("72", "48 + 24 = 72\n#### 72", {"reference_pattern": r"#### (.+)"}, 1.0),
        ("the moon!", ["Sun", "The Moon"], {}, 1.0),
        ("nan", "nan", {}, 1.0),
        ("", "4", {}, 0.0),
    ],
)
def test_answers_by_hand(
    response: str, answer: Any, options: dict[str, Any], expected: float
) -> None:
    facts = Facts(rows=[{"answer": answer}])
    assert scores_of(rule("answer", **options), ["q"], [response], facts) == [expected]


def test_a_row_without_an_answer_is_refused_or_scored_as_asked() -> None:
    facts = Facts(rows=[{"solution": "4"}])
    with pytest.raises(RewardError, match=r"no column 'answer'.*it has solution\).*`column`"):
        scores_of(rule("answer"), ["q"], ["4"], facts)
    assert scores_of(rule("answer", column="solution"), ["q"], ["4"], facts) == [1.0]
    assert scores_of(rule("answer", missing=0.5), ["q"], ["4"], facts) == [0.5]
    with pytest.raises(RecipeError, match="reference_pattern '\\[' is no regular expression"):
        rule("answer", reference_pattern="[")
