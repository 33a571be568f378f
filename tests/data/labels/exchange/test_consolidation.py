import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labels.exchange.consolidation import (
    consolidate,
    majority_ranks,
    pair_probabilities,
    pair_votes,
)
from data.records import dense_ranks


def test_the_majority_of_each_pair_wins():
    assert majority_ranks([[1, 2, 3], [1, 3, 2], [2, 1, 3]]) == [1, 2, 3]


def test_equal_votes_tie():
    assert majority_ranks([[1, 2], [2, 1]]) == [1, 1]
    assert majority_ranks([[1, 2], [2, 1], [1, 1]]) == [1, 1]
    assert majority_ranks([[1, 2], [1, 1]]) == [1, 2]


def test_a_circle_of_majorities_is_a_tie():
    assert majority_ranks([[1, 2, 3], [3, 1, 2], [2, 3, 1]]) == [1, 1, 1]


def test_shares_of_annotators():
    assert pair_votes([[1, 2], [1, 1], [2, 1]]) == [[0.0, 1.5], [1.5, 0.0]]
    assert pair_probabilities([[1, 2], [1, 2], [1, 1], [2, 1]]) == [[0.5, 0.625], [0.375, 0.5]]
    with pytest.raises(ValueError, match="same completions"):
        pair_votes([[1, 2], [1, 2, 3]])


RANKS = st.lists(st.integers(1, 5), min_size=5, max_size=5).map(dense_ranks)


@given(ranks=RANKS)
def test_a_single_ranking_comes_out_as_it_went_in(ranks):
    assert majority_ranks([ranks]) == ranks


@given(rankings=st.lists(RANKS, min_size=1, max_size=5))
def test_what_everybody_says_the_majority_says(rankings):
    merged = majority_ranks(rankings)
    for i in range(5):
        for j in range(5):
            if all(ranks[i] < ranks[j] for ranks in rankings):
                assert merged[i] < merged[j]
    assert majority_ranks(rankings[::-1]) == merged
    shares = pair_probabilities(rankings)
    for i in range(5):
        for j in range(5):
            assert shares[i][j] + shares[j][i] == pytest.approx(1)


def test_labels_become_rankings_in_three_ways(label):
    new = {"meta": {"topic": "tea"}, "policies": ["m1", "m2"]}
    rows = [
        label("t", "ann", [1, 2], new=new, mode="pairs", strength=3),
        label("t", "bob", [1, 2], new=new, mode="pairs", strength=1),
        label("t", "eve", [2, 1], new=new, mode="pairs", strength=1),
        label("u", "ann", [1, 2], ratings=[6, 2], mode="rate_and_rank"),
    ]
    each = consolidate(rows, how="per_annotator")
    assert [one.ranking.ranks for one in each] == [[1, 2], [1, 2], [2, 1], [1, 2]]
    assert [one.ranking.annotator for one in each] == ["ann", "bob", "eve", "ann"]
    assert each[2].strength == 1
    assert each[0].ranking.meta == {"topic": "tea"}

    majority = consolidate(rows, how="majority")
    assert [one.ranking.ranks for one in majority] == [[1, 2], [1, 2]]
    # 3 and 1 for it, 1 against.
    assert majority[0].strength == pytest.approx(1)
    assert majority[1].ratings == [6, 2]
    votes = {"annotators": ["ann", "bob", "eve"]}
    assert majority[0].ranking.meta == {"topic": "tea", "_votes": votes}
    assert majority[0].ranking.probabilities == []
    assert majority[0].ranking.policies == ["m1", "m2"]

    soft = consolidate(rows, how="soft")
    assert soft[0].ranking.probabilities[0][1] == pytest.approx(2 / 3)
