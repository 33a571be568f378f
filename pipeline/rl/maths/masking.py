"""Masks and the sums under them.

Shapes: B episodes, T response tokens with padding on the right. Masks are boolean, True counts.
`mask_BT` covers the tokens that the policy chose of a response, the end-of-sequence token included:
where a tool put tokens among them it has holes, and a response begins with one of the policy's own.
A value mask covers the states whose values count, which are as many or one more (`value_mask`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ScorePosition = Literal["last", "past_last"]


class Truncation(NamedTuple):
    """Where responses end.

    Attributes:
        lengths_B: tokens up to and with the first end-of-sequence token.
        ended_B: whether there is one.
    """

    lengths_B: Tensor
    ended_B: Tensor


def truncate_after_end(
    *, tokens_BT: Tensor, mask_BT: Tensor, end_ids: Tensor, start: int = 0
) -> Truncation:
    """Find where each response ends: after its first end-of-sequence token, or with its mask.

    Args:
        tokens_BT: the responses.
        mask_BT: their tokens.
        end_ids: tokens that end a response.
        start: first position at which one counts (Ziegler et al. 2019 end a continuation at the
            first full stop from position 16 on).
    """
    is_end_BT = torch.isin(tokens_BT, end_ids) & mask_BT
    is_end_BT[:, :start] = False
    ended_B = is_end_BT.any(dim=1)
    first_B = is_end_BT.int().argmax(dim=1)  # the first of equals
    return Truncation(torch.where(ended_B, first_B + 1, mask_BT.sum(dim=1)), ended_B)


def length_mask(*, lengths_B: Tensor, size: int) -> Tensor:
    """Return the mask (B, size) of the first `lengths_B` positions of each row."""
    return torch.arange(size, device=lengths_B.device)[None, :] < lengths_B[:, None]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum the values that count; the others may be anything, NaN and infinities too."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def masked_mean(values: Tensor, mask: Tensor, *, count: float | Tensor) -> Tensor:
    """Return the masked sum over a count: that of the global batch, so that parts add up."""
    return masked_sum(values, mask) / count


def response_width(lengths: Sequence[int], *, score_position: ScorePosition, most: int) -> int:
    """Return the width of rows for responses of these lengths, which have `most` tokens at most.

    With "past_last" there is room for the state after the last token of all shorter ones (N+).
    """
    longest = max(lengths)
    # Never more than `most`: whether a response has such a state follows from its own length, not
    # from those that it shares a batch or a process with.
    return longest if score_position == "last" else max(longest, min(longest + 1, most))


def value_mask(*, mask_BT: Tensor, score_position: ScorePosition) -> Tensor:
    """Return the mask (B, T) of the states whose values count.

    With "last" those in which a token is chosen, so the mask itself; with "past_last" the state
    after the last token too, where the row has room for it (N+, TRL).
    """
    if score_position == "last":
        return mask_BT
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return mask_BT | (places_T == _last_places(mask_BT)[:, None] + 1)


def score_places(*, mask_BT: Tensor, score_position: ScorePosition) -> Tensor:
    """Return the place (B) of each response's score: the last state whose value counts."""
    return _last_places(value_mask(mask_BT=mask_BT, score_position=score_position))


def _last_places(mask_BT: Tensor) -> Tensor:
    """Return the last place (B) of each row that counts."""
    return (mask_BT * torch.arange(mask_BT.shape[1], device=mask_BT.device)).amax(dim=1)
