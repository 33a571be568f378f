from __future__ import annotations

import pytest

from pipeline.contract.settings import SourceSettings, rows_at_most


@pytest.mark.parametrize(
    ("limits", "rows"),
    [([], 10), ([None], 10), ([4], 10), ([4, None, 90], 10), ([4, 5], 10), ([4, 8], 12)],
)
def test_sources_that_all_have_a_limit_ask_for_more_rows(
    limits: list[int | None], rows: int
) -> None:
    sources = [SourceSettings(path="a", limit=limit) for limit in limits]
    assert rows_at_most(sources, 10) == rows


def test_a_share_is_held_out_of_a_part_alone() -> None:
    assert SourceSettings(path="a", part="train", heldout_share=0.2).source().heldout_share == 0.2
    with pytest.raises(ValueError, match="heldout_share is for `part: train`"):
        SourceSettings(path="a", heldout_share=0.2)


def test_what_a_source_does_not_set_is_no_part_of_a_key() -> None:
    dumped = SourceSettings(path="a").model_dump()
    assert not {"chat", "part", "heldout_share"} & set(dumped)
