"""The tongue: one law for all documents, and a tail that goes on by a power."""

from __future__ import annotations

from itertools import pairwise

import pytest

from data.world import DOCUMENTS, World
from data.world.tongue import WORDS, write_tongue


def test_documents_repeat_and_follow_each_other() -> None:
    texts = write_tongue(0, 40)
    assert write_tongue(0, 10, skip=30) == texts[30:]
    assert write_tongue(1, 1) != texts[:1]
    assert {len(text.split()) for text in texts} == {WORDS}


def test_what_is_held_out_comes_before_what_is_learned() -> None:
    held = tuple(document.text for document in World(3).documents("tongue_heldout"))
    assert held == write_tongue(3, DOCUMENTS["tongue_heldout"])
    assert len(set(held)) == len(held)


@pytest.mark.parametrize(("together", "grows"), [(1, 0.3), (2, 0.54), (3, 0.68)])
def test_new_words_pairs_and_threes_go_on_coming_by_a_power(together: int, grows: float) -> None:
    words = " ".join(write_tongue(0, 1000)).split()
    runs = list(zip(*(words[start:] for start in range(together)), strict=False))
    found = [len(set(runs[: len(runs) // part])) for part in (4, 2, 1)]
    for fewer, more in pairwise(found):
        assert more / fewer == pytest.approx(2**grows, rel=0.08)
