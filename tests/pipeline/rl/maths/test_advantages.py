from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rl.maths.advantages import (
    Moments,
    end_rule,
    generalized_advantages,
    moments,
    shaped_rewards,
    whitened,
)
from pipeline.rl.maths.masking import length_mask, value_mask


@st.composite
def episodes(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and mask of a few episodes."""
    count, size = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    lengths = torch.randint(1, size + 1, (count,), generator=generator)
    rewards, values = (
        torch.randn(count, size, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return rewards, values, length_mask(lengths_B=lengths, size=size)


def test_scores_without_an_end_by_rule() -> None:
    scores, ended = torch.tensor([2.0, 2.0, -3.0]), torch.tensor([True, False, False])

    def ruled(rule: Any) -> list[float]:
        return end_rule(scores_B=scores, ended_B=ended, rule=rule, penalty=-1.0).tolist()

    assert ruled("min") == [2, -1, -3]  # never ending cannot pay
    assert ruled("replace") == [2, -1, -1]  # N+
    assert ruled("subtract") == [2, 1, -4]  # TRL
    assert ruled("none") == [2, 2, -3]


def test_the_score_stands_at_the_last_token() -> None:
    rewards = shaped_rewards(
        scores_B=torch.tensor([1.0, -2.0]),
        kl_BT=torch.tensor([[0.5, 1.0, math.nan], [1.0, 0.0, -2.0]]),
        mask_BT=torch.tensor([[True, True, False], [True, True, True]]),
        coefficient=0.1,
    )
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.9, 0.0])
    assert rewards[1].tolist() == pytest.approx([-0.1, 0.0, -1.8])


def test_the_score_stands_one_past_the_last_token_where_there_is_room() -> None:
    rewards = shaped_rewards(
        scores_B=torch.tensor([1.0, -2.0]),
        kl_BT=torch.tensor([[0.5, 1.0, math.nan], [1.0, 0.0, -2.0]]),
        mask_BT=torch.tensor([[True, True, False], [True, True, True]]),
        coefficient=0.1,
        score_position="past_last",
    )
    assert rewards[0].tolist() == pytest.approx([-0.05, -0.1, 1.0])
    assert rewards[1].tolist() == pytest.approx([-0.1, 0.0, -1.8])


@given(episodes(), st.floats(-2, 2))
def test_undiscounted_returns_do_not_depend_on_the_place_of_the_score(
    sample: Any, score: float
) -> None:
    _, values, mask = sample
    found = []
    for position in ("last", "past_last"):
        rewards = shaped_rewards(
            scores_B=torch.full((len(mask),), score),
            kl_BT=values.roll(1, 0),
            mask_BT=mask,
            coefficient=0.3,
            score_position=position,
        )
        states = value_mask(mask_BT=mask, score_position=position)
        returns = generalized_advantages(
            rewards_BT=rewards, values_BT=values, mask_BT=states, gamma=1.0, lam=1.0
        ).returns_BT
        found.append(torch.where(mask, returns, 0.0))
    assert torch.allclose(found[0], found[1])


def test_a_value_past_the_last_token_stands_between_it_and_the_score_by_hand() -> None:
    found = generalized_advantages(
        rewards_BT=torch.tensor([[0.0, 1.0, 9.0]]),
        values_BT=torch.tensor([[0.5, 0.8, 9.0]]),
        mask_BT=value_mask(
            mask_BT=torch.tensor([[True, False, False]]), score_position="past_last"
        ),
        gamma=0.9,
        lam=0.5,
    )
    # delta = (0.9 * 0.8 - 0.5, 1 - 0.8) = (0.22, 0.2); A_1 = 0.22 + 0.45 * 0.2 = 0.31
    assert found.advantages_BT[0].tolist() == pytest.approx([0.31, 0.2, 0.0])
    assert found.returns_BT[0].tolist() == pytest.approx([0.81, 1.0, 0.0])


def test_advantages_of_three_tokens_by_hand() -> None:
    found = generalized_advantages(
        rewards_BT=torch.tensor([[0.0, 0.0, 1.0]]),
        values_BT=torch.tensor([[0.5, 0.4, 0.8]]),
        mask_BT=torch.ones(1, 3, dtype=torch.bool),
        gamma=0.9,
        lam=0.5,
    )
    # delta = (0.9 * 0.4 - 0.5, 0.9 * 0.8 - 0.4, 1 - 0.8) = (-0.14, 0.32, 0.2)
    # A_3 = 0.2, A_2 = 0.32 + 0.45 * 0.2 = 0.41, A_1 = -0.14 + 0.45 * 0.41 = 0.0445
    assert found.advantages_BT[0].tolist() == pytest.approx([0.0445, 0.41, 0.2])
    assert found.returns_BT[0].tolist() == pytest.approx([0.5445, 0.81, 1.0])


@given(episodes())
def test_lambda_1_gives_return_minus_value(sample: Any) -> None:
    rewards, values, mask = sample
    found = generalized_advantages(
        rewards_BT=rewards, values_BT=values, mask_BT=mask, gamma=1.0, lam=1.0
    )
    masked = torch.where(mask, rewards, 0.0)
    returns = masked.flip(1).cumsum(1).flip(1)
    assert torch.allclose(found.advantages_BT, torch.where(mask, returns - values, 0.0))
    assert torch.allclose(found.returns_BT, torch.where(mask, returns, 0.0))


@given(episodes(), st.integers(1, 4))
def test_padding_changes_nothing(sample: Any, extra: int) -> None:
    rewards, values, mask = sample
    width = rewards.shape[1]
    wide = [torch.nn.functional.pad(t, (0, extra), value=math.nan) for t in (rewards, values)]
    wide_mask = torch.nn.functional.pad(mask, (0, extra), value=False)
    arguments = {"gamma": 0.97, "lam": 0.9}
    narrow = generalized_advantages(
        rewards_BT=rewards, values_BT=values, mask_BT=mask, **arguments
    ).advantages_BT
    padded = generalized_advantages(
        rewards_BT=wide[0], values_BT=wide[1], mask_BT=wide_mask, **arguments
    ).advantages_BT
    assert torch.equal(padded[:, :width], narrow)
    assert not padded[:, width:].any()
    assert torch.allclose(
        whitened(padded, wide_mask, of=moments(padded, wide_mask))[:, :width],
        whitened(narrow, mask, of=moments(narrow, mask)),
    )


def test_whitening_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 99.0])
    mask = torch.tensor([True, True, True, False])
    of = moments(values, mask)
    # mean 2, variance of a sample 1
    assert whitened(values, mask, of=of).tolist() == pytest.approx([-1, 0, 1, 0], abs=1e-6)
    kept = whitened(values, mask, of=of, shift_mean=False)
    assert kept.tolist() == pytest.approx([1, 2, 3, 0], abs=1e-6)


def test_a_single_token_whitens_to_zero() -> None:
    value, mask = torch.tensor([4.0]), torch.tensor([True])
    assert whitened(value, mask, of=moments(value, mask)).tolist() == [0.0]


@given(episodes(), st.integers(0, 4))
def test_moments_of_parts_add_up(sample: Any, cut: int) -> None:
    values, _, mask = sample
    cut = min(cut, len(values))
    parts = [moments(values[s], mask[s]) for s in (slice(cut), slice(cut, None))]
    whole = Moments(*(a + b for a, b in zip(*parts, strict=True)))
    pieces = torch.cat(
        [whitened(values[s], mask[s], of=whole) for s in (slice(cut), slice(cut, None))]
    )
    assert torch.allclose(pieces, whitened(values, mask, of=moments(values, mask)))


def test_advantages_pass_over_what_a_tool_put_there_by_hand() -> None:
    found = generalized_advantages(
        rewards_BT=torch.tensor([[0.1, math.nan, 7.0, 0.2, 1.0]]),
        values_BT=torch.tensor([[0.5, 9.0, math.nan, 0.4, 0.8]]),
        mask_BT=torch.tensor([[True, False, False, True, True]]),
        gamma=0.9,
        lam=0.5,
    )
    # The value of the token before the call looks to that of the first one after its result:
    # delta = (0.1 + 0.9 * 0.4 - 0.5, 0.2 + 0.9 * 0.8 - 0.4, 1 - 0.8) = (-0.04, 0.52, 0.2)
    # A_5 = 0.2, A_4 = 0.52 + 0.45 * 0.2 = 0.61, A_1 = -0.04 + 0.45 * 0.61 = 0.2345
    assert found.advantages_BT[0].tolist() == pytest.approx([0.2345, 0, 0, 0.61, 0.2])
    assert found.returns_BT[0].tolist() == pytest.approx([0.7345, 0, 0, 1.01, 1.0])


def test_the_score_stands_at_the_last_token_that_the_policy_chose() -> None:
    rewards = shaped_rewards(
        scores_B=torch.tensor([1.0, -2.0]),
        kl_BT=torch.tensor([[0.5, math.nan, 1.0], [1.0, 3.0, math.nan]]),
        mask_BT=torch.tensor([[True, False, True], [True, False, False]]),
        coefficient=0.1,
    )
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.0, 0.9])
    assert rewards[1].tolist() == pytest.approx([-2.1, 0.0, 0.0])  # cut off within a result


@given(episodes(), st.data())
def test_an_episode_without_what_a_tool_put_there_has_the_same_advantages(
    sample: Any, data: Any
) -> None:
    kls, values, mask = sample
    count, size = mask.shape

    def found(kl_BT: Any, values_BT: Any, mask_BT: Any) -> Any:
        rewards_BT = shaped_rewards(
            scores_B=3 * values[:, 0], kl_BT=kl_BT, mask_BT=mask_BT, coefficient=0.3
        )
        of = moments(rewards_BT, mask_BT)
        rewards_BT = whitened(rewards_BT, mask_BT, of=of, shift_mean=False)
        advantages_BT, returns_BT = generalized_advantages(
            rewards_BT=rewards_BT, values_BT=values_BT, mask_BT=mask_BT, gamma=0.97, lam=0.9
        )
        return whitened(advantages_BT, mask_BT, of=moments(advantages_BT, mask_BT)), returns_BT

    # The policy's tokens move right, in order, behind what tools say; the first stays.
    others = st.permutations(range(1, size + 4))
    at = torch.tensor([[0, *sorted(data.draw(others)[: size - 1])] for _ in range(count)])

    def spread(narrow: Any, filling: Any) -> Any:
        return torch.full((count, size + 4), filling, dtype=narrow.dtype).scatter(1, at, narrow)

    wide_mask = spread(mask, False)
    wide = found(spread(kls, math.nan), spread(values, math.inf), wide_mask)
    for told, narrow in zip(wide, found(kls, values, mask), strict=True):
        assert torch.allclose(told.gather(1, at), narrow)
        assert not told[~wide_mask].any()
