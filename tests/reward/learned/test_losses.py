"""The ranking loss: values worked by hand, and what must not change it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward.learned.losses import RankingLoss, has_comparable_pair, pad_rankings, ranking_loss


def loss_of(scores: list[list[float]], ranks: list[list[int]], **more: Any) -> RankingLoss:
    flat = torch.tensor([s for row in scores for s in row], dtype=torch.float32)
    padded = pad_rankings(scores_S=flat, ranks=ranks, probabilities=more.pop("soft", ()))
    more.setdefault("n_prompts", len(ranks))
    return ranking_loss(**padded._asdict(), **more)


def test_one_pair_is_minus_log_sigmoid_of_the_difference() -> None:
    # sigmoid(log 3) = 3/4, so the loss is log(4/3).
    assert loss_of([[math.log(3), 0.0]], [[1, 2]]).loss.item() == pytest.approx(math.log(4 / 3))


def test_three_ranked_completions_average_their_three_pairs() -> None:
    # Scores log 1, log 3, log 9 against ranks 3, 2, 1: differences log 3, log 3, log 9;
    # sigmoids 3/4, 3/4, 9/10.
    scores = [[0.0, math.log(3), math.log(9)]]
    expected = -(2 * math.log(3 / 4) + math.log(9 / 10)) / 3
    assert loss_of(scores, [[3, 2, 1]]).loss.item() == pytest.approx(expected)


def test_a_tie_is_left_out() -> None:
    # Pairs 0-2 and 1-2 remain: differences 0 and log 3.
    result = loss_of([[0.0, math.log(3), 0.0]], [[1, 1, 2]])
    assert result.loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    # Equal scores are half right, the other pair is right: 1.5 of 2.
    assert (result.correct.item(), result.n_ranked) == (1.5, 2)


def test_a_tie_can_be_pulled_to_one_half() -> None:
    # d = log 3: -(log 3/4 + log 1/4) / 2; least, log 2, where the scores are equal.
    pulled = loss_of([[math.log(3), 0.0]], [[1, 1]], ties="half")
    assert pulled.loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert loss_of([[1.0, 1.0]], [[1, 1]], ties="half").loss.item() == pytest.approx(math.log(2))
    assert pulled.n_used == 1
    assert pulled.n_ranked == 0


def test_pulled_ties_count_among_the_pairs_of_their_prompt() -> None:
    # Three pairs: one tie at difference 0 (log 2), two ranked at difference 0 (log 2 each).
    assert loss_of([[0.0] * 3], [[1, 1, 2]], ties="half").loss.item() == pytest.approx(math.log(2))


def test_prompts_that_tie_throughout_add_nothing_and_are_counted() -> None:
    result = loss_of([[5.0, 1.0], [0.0, 0.0]], [[1, 1], [1, 2]], n_prompts=1)
    assert result.loss.item() == pytest.approx(math.log(2))
    assert (result.n_used, result.n_ranked) == (1, 1)
    assert not has_comparable_pair([1, 1, 1])
    assert not has_comparable_pair([1], ties="half")
    assert has_comparable_pair([1, 1], ties="half")
    assert has_comparable_pair([1, 2, 2])


def test_a_margin_is_asked_of_the_difference() -> None:
    assert loss_of([[2.5, 0.0]], [[1, 2]], margin=2.5).loss.item() == pytest.approx(math.log(2))


def shares_of(ranks: list[int]) -> list[list[float]]:
    """What one annotator's ranks are as soft labels."""
    return [[0.5 + 0.5 * ((a < b) - (a > b)) for b in ranks] for a in ranks]


def test_a_soft_label_is_a_cross_entropy_with_the_share() -> None:
    # Three of four for the first: at d = log 3 the model says 3/4 too, the loss is its entropy.
    soft = [[[0.5, 0.75], [0.25, 0.5]]]
    there = loss_of([[math.log(3), 0.0]], [[1, 2]], soft=soft)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert there.loss.item() == pytest.approx(entropy)
    assert (there.correct.item(), there.n_ranked, there.n_used) == (1.0, 1, 1)
    # At d = log 9: -(3/4 log 9/10 + 1/4 log 1/10), more, though the order is right.
    assert loss_of([[math.log(9), 0.0]], [[1, 2]], soft=soft).loss.item() == pytest.approx(
        -(0.75 * math.log(0.9) + 0.25 * math.log(0.1))
    )


def test_the_pull_of_a_soft_label_ends_at_its_log_odds_and_the_margin() -> None:
    for margin in (0.0, 0.5):
        scores = torch.tensor([[0.0, math.log(3) + margin, 0.0]], requires_grad=True)
        padded = pad_rankings(
            scores_S=torch.zeros(3),
            ranks=[[2, 1, 3]],
            probabilities=[[[0.5, 0.25, 0.5], [0.75, 0.5, 0.75], [0.5, 0.25, 0.5]]],
        )
        ranking_loss(
            **(padded._asdict() | {"scores_NK": scores}), n_prompts=1, margin=margin
        ).loss.backward()
        assert scores.grad is not None
        assert scores.grad.tolist() == [pytest.approx([0.0, 0.0, 0.0], abs=1e-6)]


def test_equal_votes_are_learnt_though_ties_are_dropped() -> None:
    result = loss_of([[math.log(3), 0.0]], [[1, 1]], soft=[[[0.5, 0.5], [0.5, 0.5]]])
    assert result.loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert (result.n_used, result.n_ranked) == (1, 0)
    assert has_comparable_pair([1, 1], soft=True) and not has_comparable_pair([1], soft=True)


def test_prompts_with_soft_labels_leave_the_others_alone() -> None:
    scores, ranks = [[0.5, 1.5, 0.0], [2.0, 0.0]], [[1, 2, 2], [1, 2]]
    soft = [[], [[0.5, 0.9], [0.1, 0.5]]]
    mixed = loss_of(scores, ranks, soft=soft)
    parts = [
        loss_of([s], [r], soft=[p], n_prompts=2)
        for s, r, p in zip(scores, ranks, soft, strict=True)
    ]
    assert mixed.loss.item() == pytest.approx(sum(part.loss.item() for part in parts))
    assert parts[0].loss.item() == loss_of(scores[:1], ranks[:1], n_prompts=2).loss.item()


def test_a_prompt_counts_once_whatever_its_number_of_completions() -> None:
    # All scores equal: each pair costs log 2, whether a prompt has 1 pair or 36.
    both = loss_of([[0.0] * 2, [0.0] * 9], [[1, 2], list(range(1, 10))])
    assert both.loss.item() == pytest.approx(math.log(2))


def test_the_gradient_lifts_the_better_and_is_zero_for_padding() -> None:
    scores = torch.zeros(1, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    ranks = torch.tensor([[1, 2, 1]])
    ranking_loss(scores_NK=scores, ranks_NK=ranks, mask_NK=mask, n_prompts=1).loss.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[-0.5, 0.5, 0.0]]


def test_an_infinite_padding_score_does_not_reach_the_loss() -> None:
    scores = torch.tensor([[1.0, 0.0, math.inf]])
    mask = torch.tensor([[True, True, False]])
    ranks = torch.tensor([[1, 2, 0]])
    result = ranking_loss(scores_NK=scores, ranks_NK=ranks, mask_NK=mask, n_prompts=1)
    assert result.loss.isfinite()


def test_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="n_prompts"):
        loss_of([[1.0, 0.0]], [[1, 2]], n_prompts=0)


score = st.floats(-20, 20, width=32)
rankings = st.lists(
    st.integers(2, 5).flatmap(
        lambda k: st.tuples(
            st.lists(score, min_size=k, max_size=k),
            st.lists(st.integers(1, 3), min_size=k, max_size=k),
        )
    ),
    min_size=1,
    max_size=5,
)
ties = st.sampled_from(["drop", "half"])


@given(rankings, ties, st.floats(-5, 5))
def test_a_constant_added_to_all_scores_changes_nothing(rows: Any, mode: Any, shift: float) -> None:
    scores, ranks = zip(*rows, strict=True)
    plain = loss_of(list(scores), list(ranks), ties=mode)
    moved = loss_of([[s + shift for s in row] for row in scores], list(ranks), ties=mode)
    assert moved.loss.item() == pytest.approx(plain.loss.item(), abs=1e-4)


@given(rankings, ties)
def test_micro_batches_add_up_to_the_whole(rows: Any, mode: Any) -> None:
    scores, ranks = zip(*rows, strict=True)
    whole = loss_of(list(scores), list(ranks), ties=mode)
    parts = [
        loss_of([s], [r], ties=mode, n_prompts=len(rows))
        for s, r in zip(scores, ranks, strict=True)
    ]
    assert sum(p.loss.item() for p in parts) == pytest.approx(whole.loss.item(), abs=1e-4)
    assert sum(p.n_used for p in parts) == whole.n_used


@given(rankings, ties, st.randoms(use_true_random=False))
def test_the_order_of_completions_changes_nothing(rows: Any, mode: Any, random: Any) -> None:
    shuffled = []
    for scores, ranks in rows:
        order = list(range(len(ranks)))
        random.shuffle(order)
        shuffled.append(([scores[i] for i in order], [ranks[i] for i in order]))
    plain = loss_of(*map(list, zip(*rows, strict=True)), ties=mode)
    moved = loss_of(*map(list, zip(*shuffled, strict=True)), ties=mode)
    assert moved.loss.item() == pytest.approx(plain.loss.item(), rel=1e-4, abs=1e-5)
    assert moved.correct.item() == pytest.approx(plain.correct.item(), abs=1e-5)


@given(rankings, st.sampled_from([0.0, 1.5]))
def test_shares_of_one_annotator_are_ranks_with_ties_at_one_half(rows: Any, margin: Any) -> None:
    scores, ranks = map(list, zip(*rows, strict=True))
    hard = loss_of(scores, ranks, ties="half", margin=margin)
    soft = loss_of(scores, ranks, soft=[shares_of(row) for row in ranks], margin=margin)
    assert soft.loss.item() == pytest.approx(hard.loss.item(), rel=1e-5, abs=1e-6)
    assert soft.correct.item() == hard.correct.item()


@given(rankings)
def test_reversing_scores_reverses_accuracy(rows: Any) -> None:
    scores, ranks = zip(*rows, strict=True)
    up = loss_of(list(scores), list(ranks))
    down = loss_of([[-s for s in row] for row in scores], list(ranks))
    assert up.correct.item() + down.correct.item() == pytest.approx(up.n_ranked, abs=1e-4)
