"""maj@k is the mean over all subsets of k answers."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.benchmarks.majority import majority_right


def by_all_subsets(answers: list[str | None], right: str, k: int) -> float:
    shares = []
    for chosen in combinations(answers, k):
        votes = Counter(one for one in chosen if one is not None)
        most = max(votes.values(), default=0)
        winners = [one for one, count in votes.items() if count == most]
        shares.append(1 / len(winners) if right in winners else 0.0)
    return sum(shares) / len(shares)


@given(st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=8), st.data())
def test_it_is_the_mean_over_all_subsets(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    assert majority_right(answers, "1", k) == pytest.approx(by_all_subsets(answers, "1", k))


def test_one_vote_is_the_share_of_right_answers_and_no_right_one_is_never_right() -> None:
    assert majority_right(["7", "8", None, "7"], "7", 1) == 0.5
    assert majority_right([None, None], "7", 2) == 0.0
    assert majority_right(["7", None], None, 1) == 0.0


def test_many_answers_are_counted() -> None:
    answers = ["7"] * 20 + [str(i % 9) for i in range(44)]
    assert majority_right(answers, "7", 32) > majority_right(answers, "7", 1)
