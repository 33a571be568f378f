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
