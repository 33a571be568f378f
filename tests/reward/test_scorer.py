"""What a scorer may give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data.errors import RewardError
from reward.scorer import require_scores


@pytest.mark.parametrize(
    "given",
    [
        [1, 0.5],
        (True, 0.5),
        np.array([1, 0.5], dtype=np.float32),
        torch.tensor([1.0, 0.5]),
        [torch.tensor(1.0), np.float32(0.5)],
    ],
)
def test_lists_arrays_and_tensors_are_taken(given: Any) -> None:
    assert require_scores(given, count=2, origin="x") == [1.0, 0.5]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1.0], "x gave 1 scores for 2 responses"),
        ([1.0, None], "x gave None for response 1 of 2"),
        (["1", 2.0], "x gave '1' for response 0 of 2"),
        (3.0, "x gave a float, not a list"),
        (None, "x gave a NoneType, not a list"),
        ({"a": 1}, "x gave a dict, not a list"),
        ([[1.0], [2.0]], r"x gave \[1.0\] for response 0"),
    ],
)
def test_anything_else_is_refused(given: Any, expected: str) -> None:
    with pytest.raises(RewardError, match=expected):
        require_scores(given, count=2, origin="x")
