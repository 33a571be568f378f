from __future__ import annotations

import math

import torch

from pipeline.rl.maths.masking import (
    length_mask,
    masked_mean,
    masked_sum,
    response_width,
    score_places,
    truncate_after_end,
    value_mask,
)


def test_responses_end_after_their_first_end() -> None:
    tokens = torch.tensor([[5, 2, 7, 2], [5, 6, 7, 8], [5, 6, 3, 0], [5, 6, 2, 2]])
    mask = length_mask(lengths_B=torch.tensor([4, 4, 3, 2]), size=4)
    found = truncate_after_end(tokens_BT=tokens, mask_BT=mask, end_ids=torch.tensor([2, 3]))
    assert found.lengths_B.tolist() == [2, 4, 3, 2]  # the last row's ends are padding
    assert found.ended_B.tolist() == [True, False, True, False]


def test_masks_follow_lengths() -> None:
    mask = length_mask(lengths_B=torch.tensor([1, 3]), size=3)
    assert mask.tolist() == [[True, False, False], [True, True, True]]


def test_one_past_the_last_token_has_a_value_and_the_score_where_there_is_room() -> None:
    mask = length_mask(lengths_B=torch.tensor([1, 3, 4]), size=4)
    assert value_mask(mask_BT=mask, score_position="last") is mask
    assert score_places(mask_BT=mask, score_position="last").tolist() == [0, 2, 3]
    # The longest response fills its row.
    assert value_mask(mask_BT=mask, score_position="past_last").sum(dim=1).tolist() == [2, 4, 4]
    assert score_places(mask_BT=mask, score_position="past_last").tolist() == [1, 3, 3]


def test_there_is_room_past_the_last_token_of_what_is_shorter_than_responses_may_be() -> None:
    def width(*lengths: int) -> int:
        return response_width(lengths, score_position="past_last", most=4)

    assert [width(1), width(2, 3), width(3, 4), width(4)] == [2, 4, 4, 4]
    assert response_width([1, 3], score_position="last", most=4) == 3


def test_what_does_not_count_may_be_anything() -> None:
    values = torch.tensor([1.0, math.nan, math.inf, 3.0])
    mask = torch.tensor([True, False, False, True])
    assert masked_sum(values, mask).item() == 4.0
    assert masked_mean(values, mask, count=mask.sum()).item() == 2.0
    assert masked_mean(values, mask, count=8).item() == 0.5


def test_an_end_before_the_start_does_not_count() -> None:
    tokens_BT = torch.tensor([[9, 1, 9, 2], [9, 1, 1, 1]])
    mask_BT = torch.ones(2, 4, dtype=torch.bool)
    found = truncate_after_end(
        tokens_BT=tokens_BT, mask_BT=mask_BT, end_ids=torch.tensor([9]), start=1
    )
    assert found.lengths_B.tolist() == [3, 4]
    assert found.ended_B.tolist() == [True, False]


def test_what_a_tool_put_there_has_no_value_and_no_score() -> None:
    # The last response was cut off within what a tool said.
    mask_BT = torch.tensor([[1, 0, 0, 1, 1], [1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    assert value_mask(mask_BT=mask_BT, score_position="last") is mask_BT
    assert score_places(mask_BT=mask_BT, score_position="last").tolist() == [4, 3, 0]
    past_BT = value_mask(mask_BT=mask_BT, score_position="past_last")
    assert past_BT.int().tolist() == [[1, 0, 0, 1, 1], [1, 1, 0, 1, 1], [1, 1, 0, 0, 0]]
    assert score_places(mask_BT=mask_BT, score_position="past_last").tolist() == [4, 4, 1]
