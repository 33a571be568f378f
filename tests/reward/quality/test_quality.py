"""Pair accuracy, its interval and its baselines, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import Ranking, prompt_hash
from reward.quality.calibration import Calibration, demonstration_bias
from reward.quality.judging import judge, judge_rankings, summary
from reward.quality.pairs import ScoredPair, ScoredRanking, pair_rows, scored_pairs
from reward.quality.probabilities import calibration
from reward.quality.quality import length_matched, quality
from reward.quality.shares import clustered_interval, longer_wins, pair_accuracy


def pair(
    better: float, worse: float, lengths: tuple[int, int] = (5, 5), prompt: str = "p"
) -> ScoredPair:
    return ScoredPair(prompt, better, worse, *lengths)


def test_pairs_are_the_strictly_ranked_ones() -> None:
    ranking = Ranking("q", ["long answer", "no", "x"], [1, 2, 2])
    pairs = scored_pairs([ranking], [[0.5, 0.25, -1.0]])
    assert [(p.better, p.worse) for p in pairs] == [(0.5, 0.25), (0.5, -1.0)]
    assert (pairs[0].better_length, pairs[0].worse_length) == (11, 2)
    assert pairs[0].prompt == prompt_hash("q")


def test_equal_scores_and_equal_lengths_count_half() -> None:
    pairs = [pair(1, 0), pair(0, 1), pair(2, 2), pair(3, 1)]
    assert pair_accuracy(pairs).mean == pytest.approx(2.5 / 4)
    lengths = [pair(0, 0, (9, 5)), pair(0, 0, (5, 9)), pair(0, 0, (5, 5)), pair(0, 0, (1, 2))]
    assert longer_wins(lengths).mean == pytest.approx(1.5 / 4)


def test_length_matched_is_within_ten_percent_of_the_longer() -> None:
    kept = [pair(0, 0, (9, 10)), pair(0, 0, (100, 91)), pair(0, 0, (0, 0))]
    left = [pair(0, 0, (89, 100)), pair(0, 0, (5, 10))]
    assert length_matched([*kept, *left]) == kept


def test_independent_pairs_have_wilsons_interval() -> None:
    # 8 of 10 right, each its own prompt: Wilson gives [0.490, 0.943], and the cluster variance
    # is larger than p(1-p)/n by 10/9, so the interval widens to n = 9.
    values = [1.0] * 8 + [0.0] * 2
    estimate = clustered_interval(values, [str(i) for i in range(10)])
    z2, n, p = 1.959963984540054**2, 9.0, 0.8
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half))


def test_pairs_that_repeat_each_other_do_not_narrow_the_interval() -> None:
    values = [1.0] * 8 + [0.0] * 2
    names = [str(i) for i in range(10)]
    once = clustered_interval(values, names)
    thrice = clustered_interval(values * 3, names * 3)
    assert thrice.n == 30
    assert thrice.low <= once.low < once.high <= thrice.high
    # Student's quantile of 9 degrees of freedom for the normal one, no more.
    assert (thrice.high - thrice.low) / (once.high - once.low) < 2.262 / 1.960


def test_all_right_still_has_a_lower_bound() -> None:
    estimate = clustered_interval([1.0] * 20, [str(i // 2) for i in range(20)])
    assert estimate.mean == 1.0
    # Ten prompts: Wilson's lower bound n / (n + z^2).
    assert estimate.low == pytest.approx(10 / (10 + 1.959963984540054**2))
    assert estimate.high == 1.0


def test_no_pairs_has_no_accuracy() -> None:
    found = quality([])
    assert found["accuracy"] is None
    assert found["shorter_wins"] is None
    assert found["n_pairs"] == 0
    assert found["ci95"] == [0.0, 1.0]


values = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 4)), min_size=1)


@given(values)
def test_the_interval_holds_the_mean_and_lies_in_0_1(rows: list[tuple[float, int]]) -> None:
    estimate = clustered_interval([v for v, _ in rows], [str(c) for _, c in rows])
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.low < estimate.high


sizes = st.integers(0, 99)
pairs_of_lengths = st.lists(
    st.builds(
        pair, st.floats(-9, 9), st.floats(-9, 9), st.tuples(st.integers(0, 99), st.integers(0, 99))
    )
)


@given(pairs_of_lengths)
def test_bins_hold_every_pair_once_and_baselines_add_up(pairs: list[ScoredPair]) -> None:
    found = quality(pairs)
    assert sum(row["n_pairs"] for row in found["by_length_difference"]) == len(pairs)
    assert sum(row["n"] for row in found["calibration"]["reliability"]) == len(pairs)
    if pairs:
        assert found["longer_wins"] + found["shorter_wins"] == pytest.approx(1)
        weighted = sum(
            row["accuracy"] * row["n_pairs"]
            for row in found["by_length_difference"]
            if row["n_pairs"]
        )
        assert weighted / len(pairs) == pytest.approx(found["accuracy"])


def test_calibration_of_a_certain_and_wrong_model_is_poor() -> None:
    # Confidence 3/4 (difference log 3), right half of the time: the gap is 1/4.
    pairs = [pair(math.log(3), 0), pair(0, math.log(3))]
    found = calibration(pairs)
    assert found["ece"] == pytest.approx(0.25)
    assert found["log_loss"] == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert found["reliability"][0]["n"] == 2


def test_huge_differences_do_not_overflow() -> None:
    found = calibration([pair(1e6, -1e6), pair(-1e6, 1e6)])
    assert found["log_loss"] == pytest.approx(1e6)


def test_agreement_is_counted_over_annotators_or_read_from_meta() -> None:
    rows = [Ranking("q", ["a", "b"], ranks) for ranks in ([1, 2], [1, 2], [2, 1])]
    pairs = scored_pairs(rows, [[1.0, 0.0]] * 3)
    assert [p.agreement for p in pairs] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    by_share = {row["agreement"]: row for row in quality(pairs)["by_agreement"]}
    assert by_share[0.67]["accuracy"] == 1.0
    assert by_share[0.33]["accuracy"] == 0.0
    alone = scored_pairs([Ranking("q", ["a", "b"], [1, 2])], [[1.0, 0.0]])
    assert alone[0].agreement is None
    told = Ranking("q", ["a", "b"], [1, 2], meta={"agreement": 0.75})
    assert scored_pairs([told], [[1.0, 0.0]])[0].agreement == 0.75


def test_the_first_set_is_the_models_quality_and_all_pairs_are_written() -> None:
    ranking = Ranking("q", ["good", "bad!"], [1, 2], id="7", annotator="gold")
    sets = {
        "eval_rankings": [ScoredRanking(ranking, [1.0, 0.0])],
        "heldout": [ScoredRanking(ranking, [0.0, 1.0])],
    }
    content = judge(sets, Calibration(0.5, 1.0, 3))
    assert (content["judged_by"], content["accuracy"]) == ("eval_rankings", 1.0)
    assert content["heldout"]["accuracy"] == 0.0
    assert content["bias"]["reward_bias"] == 0.5
    rows = [row for name, scored in sets.items() for row in pair_rows(name, scored)]
    assert [row["set"] for row in rows] == ["eval_rankings", "heldout"]
    assert (rows[0]["better"], rows[0]["better_score"]) == ("good", 1.0)
    metrics = summary(content)
    assert metrics["eval/accuracy"] == 1.0
    assert metrics["eval/n_pairs"] == 1
    assert metrics["eval/accuracy_length_matched"] == 1.0


def test_the_bias_brings_demonstrations_to_zero() -> None:
    found = demonstration_bias([1.0, 2.0, 6.0])
    assert found.bias == -3.0
    assert found.n == 3
    assert found.deviation == pytest.approx(math.sqrt(14 / 3))
    assert demonstration_bias([]).bias == 0.0
    with pytest.raises(ValueError, match="not finite"):
        demonstration_bias([math.nan])


def test_pairs_are_told_by_margin_and_by_place() -> None:
    # Right on the far pairs, wrong on the near ones.
    rows = [Ranking(f"q{i}", ["a", "b", "c"], [1, 2, 3]) for i in range(8)]
    found = quality(scored_pairs(rows, [[2.0, 3.0, -9.0]] * 8))
    places = {row["label"]: (row["accuracy"], row["n_pairs"]) for row in found["by_place"]}
    assert places == {
        "neighbours in the ranking": (0.5, 16),
        "two places apart": (1.0, 8),
        "the best against the rest": (0.5, 16),
        "among the rest": (1.0, 8),
    }
    margins = [(r["low"], r["high"], r["accuracy"], r["n_pairs"]) for r in found["by_margin"]]
    assert margins == [(1.0, 1.0, 0.0, 8), (11.0, 11.0, 1.0, 8), (12.0, 12.0, 1.0, 8)]
    assert quality([pair(1, 0)])["by_place"] == []


def test_each_subset_has_both_length_rules() -> None:
    rows = [
        Ranking(f"q{name}{i}", ["long answer", "no"], [1, 2], meta={"subset": name})
        for name in ("chat", "safety")
        for i in range(10)
    ]
    scores = [[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 10
    found = quality(scored_pairs([*rows, Ranking("x", ["a", "b"], [1, 2])], [*scores, [1.0, 1.0]]))
    chat, safety = found["by_subset"]
    assert (chat["subset"], chat["accuracy"], chat["n_pairs"]) == ("chat", 1.0, 10)
    assert (chat["longer_wins"], chat["shorter_wins"]) == (1.0, 0.0)
    assert chat["ci95_longer_wins"] == [1 - end for end in chat["ci95_shorter_wins"][::-1]]
    assert (safety["subset"], safety["accuracy"]) == ("safety", 0.0)
    assert (chat["beats_length"]["state"], safety["beats_length"]["state"]) == (
        "not shown", "beaten",
    )  # fmt: skip
    assert found["equal_scores"]["share"] == pytest.approx(1 / 21)


def test_ties_of_annotators_and_their_ceiling_are_counted() -> None:
    rows = [
        Ranking("q", ["a", "b"], [1, 2], annotator="ann"),
        Ranking("q", ["b", "a"], [2, 1], annotator="ben"),
        Ranking("q", ["a", "b"], [2, 1], annotator="cem"),
        Ranking("r", ["a", "b"], [1, 1], annotator="ann"),
    ]
    found = judge_rankings([ScoredRanking(r, [1.0, 0.0]) for r in rows])
    assert (found["annotator_ties"]["share"], found["annotator_ties"]["n_pairs"]) == (0.25, 4)
    # Of three comparisons one agrees: less than chance, so that nothing can be learnt.
    assert found["ceiling"]["agreement"] == pytest.approx(1 / 3)
    assert (found["ceiling"]["low"], found["ceiling"]["high"]) == (0.5, 0.5)
    alone = judge_rankings([ScoredRanking(rows[0], [1.0, 0.0])])["ceiling"]
    assert (alone["agreement"], alone["ci95"]) == (None, None)
    assert "no task has labels of two annotators" in alone["note"]


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.permutations([1, 1, 2, 3]), st.permutations(range(4))),
        min_size=1,
        max_size=12,
    )
)
def test_the_figures_can_be_counted_again_from_the_rows(
    drawn: list[tuple[int, list[int], list[int]]],
) -> None:
    texts = ["a", "bb", "ccc", "dddd"]
    rows = [
        ScoredRanking(
            Ranking(f"q{prompt}", texts, ranks, meta={"subset": str(prompt % 2)}),
            [float(s // 2) for s in scores],
            [float(s) for s in scores],
        )
        for prompt, ranks, scores in drawn
    ]
    found = judge_rankings(rows)
    told = list(pair_rows("heldout", rows))

    def share(kept: list[Any], name: str = "score") -> float:
        sign = [r[f"better_{name}"] - r[f"worse_{name}"] for r in kept]
        return sum(0.5 if s == 0 else s > 0 for s in sign) / len(kept)

    assert found["n_pairs"] == len(told)
    assert found["accuracy"] == pytest.approx(share(told))
    assert found["bag_of_words"]["accuracy"] == pytest.approx(share(told, "words"))
    longer = sum(len(r["better"]) > len(r["worse"]) for r in told) / len(told)
    assert found["longer_wins"] == pytest.approx(longer)
    for row in found["by_subset"]:
        assert row["accuracy"] == share([r for r in told if r["subset"] == row["subset"]])
    best = [r for r in told if r["ranks"][0] == 1]
    (named,) = [r for r in found["by_place"] if r["label"] == "the best against the rest"]
    assert (named["accuracy"], named["n_pairs"]) == (pytest.approx(share(best)), len(best))
    equal = sum(r["better_score"] == r["worse_score"] for r in told) / len(told)
    assert found["equal_scores"]["share"] == pytest.approx(equal)
    assert sum(r["n_pairs"] for r in found["by_margin"]) == len(told)
