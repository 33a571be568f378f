"""Each way of spoiling a row, and all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.text.objectives.denoising import Noise, infill, permute_sentences, spoil

MASK = 999


@given(
    length=st.integers(1, 100),
    infilled=st.sampled_from([0.0, 0.3, 0.9]),
    mask=st.sampled_from([0.0, 0.2]),
    delete=st.sampled_from([0.0, 0.2, 1.0]),
    rotate=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_spoiled_row_holds_its_own_tokens_and_fits(
    length: int, infilled: float, mask: float, delete: float, rotate: float, seed: int
) -> None:
    ids = np.arange(length)
    noise = Noise(infill=infilled, mask=mask, delete=delete, rotate=rotate)

    def draw() -> list[int]:
        generator = np.random.default_rng(seed)
        row = spoil(ids, noise=noise, ends_T=ids % 7 == 6, mask_id=MASK, generator=generator)
        return [int(i) for i in row]

    row = draw()
    kept = [i for i in row if i != MASK]
    assert 1 <= len(row) <= length
    assert len(set(kept)) == len(kept) and set(kept) <= set(range(length))
    assert row == draw()


def test_infilling_hides_30_percent_behind_masks_for_spans_of_3() -> None:
    rng = np.random.default_rng(0)
    rows = [infill(np.arange(400), 0.3, 3.0, MASK, rng) for _ in range(50)]
    lost = [400 - int((row != MASK).sum()) for row in rows]
    assert set(lost) == {120}
    masks = np.mean([(row == MASK).sum() for row in rows])
    assert masks == pytest.approx(120 / 3, abs=2)  # a span of length 0 is one too
    kept = [row[row != MASK] for row in rows]
    assert all((np.diff(row) > 0).all() for row in kept)  # in order


def test_sentences_change_places_and_stay_whole() -> None:
    ids = np.arange(12)
    ends = np.isin(ids, [3, 6])
    orders = {
        tuple(permute_sentences(ids, ends, np.random.default_rng(s)).tolist()) for s in range(60)
    }
    a, b, c = (0, 1, 2, 3), (4, 5, 6), (7, 8, 9, 10, 11)
    assert orders == {
        a + b + c, a + c + b, b + a + c, b + c + a, c + a + b, c + b + a
    }  # fmt: skip
