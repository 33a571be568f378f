"""The bag of words that a reward model has to beat."""

from __future__ import annotations

import random

import pytest

from data.records import Ranking
from reward.quality import bag_of_words
from reward.quality.judging import judge_rankings, with_bag_of_words
from reward.quality.pairs import ScoredRanking

WORDS = [
    "the",
    "mill",
    "is",
    "old",
    "and",
    "the",
    "river",
    "runs",
    "past",
    "it",
    "every",
    "day",
    "of",
    "the",
    "year",
]


def rankings(n: int, *, start: int = 0) -> list[Ranking]:
    """The completion that says thanks is the better one; the rest of the words say nothing."""
    rng = random.Random(start)
    rows = []
    for place in range(start, start + n):
        plain = " ".join(rng.sample(WORDS, 6))
        kind = " ".join(rng.sample([*WORDS[:5], "thanks"], 6))
        rows.append(Ranking(f"q{place}", [plain, kind], [2, 1]))
    return rows


def test_it_learns_which_words_win_and_is_judged_on_other_prompts() -> None:
    held = [ScoredRanking(r, [0.0, 0.0]) for r in rankings(30, start=500)]
    found = judge_rankings(with_bag_of_words(held, rankings(60)))
    assert found["bag_of_words"]["accuracy"] > 0.9
    assert found["accuracy"] == 0.5
    assert judge_rankings(held)["bag_of_words"] == {
        "accuracy": None, "ci95": [0.0, 1.0], "n_pairs": 0,
    }  # fmt: skip


def test_by_folds_no_prompt_is_scored_by_a_model_that_saw_it() -> None:
    # Every prompt has a word of its own on the better side, which only its own rows can teach.
    rows = [Ranking(f"q{i}", [f"word{i}", "no"], [1, 2]) for i in range(40) for _ in range(3)]
    scores = bag_of_words.scores_by_folds(rows)
    assert scores is not None
    assert all(better == 0 for better, _ in scores)
    seen = bag_of_words.fit(rows)
    assert seen is not None
    assert seen.scores(["word7"])[0] > 0


def test_too_few_prompts_have_none() -> None:
    assert bag_of_words.scores_by_folds(rankings(bag_of_words.FEWEST - 1)) is None
    assert bag_of_words.scores_by_folds(rankings(bag_of_words.FEWEST)) is not None
    assert bag_of_words.fit([]) is bag_of_words.fit([Ranking("q", ["a", "b"], [1, 1])]) is None


def test_a_ridge_of_nothing_but_one_word_is_as_worked_by_hand() -> None:
    # n pairs say a word once against never: the weight w solves 20 w = n x / (1 + exp(w x)).
    import math

    x, n = math.log(2), 100
    model = bag_of_words.fit([Ranking(f"q{i}", ["yes", ""], [1, 2]) for i in range(n)])
    assert model is not None
    (weight,) = model.weights_V
    assert 20 * weight == pytest.approx(n * x / (1 + math.exp(weight * x)), rel=1e-3)
