"""What a reader who knows no language says: it copies what goes in, or goes by its form alone.

A floor for what a model learned: a model that is no better has learned no more than to copy.
Arrays hold B rows of T tokens read and S written; `NOTHING` where nothing is said.
"""

from __future__ import annotations

import numpy as np

from data.text.packing import Ids

NOTHING = -100


def copy_left(read_BT: Ids, mask_id: int) -> Ids:
    """Return what stands in masked rows: each token but a mask says itself."""
    return np.where(read_BT == mask_id, NOTHING, read_BT)


def copy_on(read_BT: Ids, given_BS: Ids, mask_id: int) -> Ids:
    """Return what follows in spoiled rows, each time, on what was just written.

    The longest run of tokens just written is looked for in the row read, and what follows it there
    is said. What follows a mask is said in its place, which may stand for none or be over, and said
    on until a token is found again.

    Args:
        read_BT: rows that go in.
        given_BS: what is written, one place later; its first token is before both rows.
        mask_id: of the mask token.
    """
    rows, length = np.arange(len(read_BT)), read_BT.shape[1]
    before_BT = np.concatenate([given_BS[:, :1], read_BT[:, :-1]], axis=1)
    run_BT, place_B = np.zeros_like(read_BT), np.zeros(len(read_BT), dtype=np.int64)
    said_BS = np.empty_like(given_BS)
    for step, given_B in enumerate(given_BS.T):
        grown_BT = np.concatenate([np.zeros_like(run_BT[:, :1]), run_BT[:, :-1]], axis=1) + 1
        run_BT = np.where(before_BT == given_B[:, None], grown_BT, 0)
        place_B = np.where(run_BT.any(1), run_BT.argmax(1), place_B)
        past_B = place_B + (read_BT[rows, place_B] == mask_id)
        said_BS[:, step] = read_BT[rows, np.minimum(past_B, length - 1)]
    return copy_left(said_BS, mask_id)


def count_on(read_BT: Ids, given_BS: Ids, sentinels: Ids, end_id: int) -> Ids:
    """Return the sentinels in their order, each as soon as the span before it has a token.

    After the last one that stands in the row read, its end is said; of hidden tokens nothing.
    """
    mark_BS = np.isin(given_BS, sentinels)
    written_BS = mark_BS.cumsum(1)
    total_B1 = np.isin(read_BT, sentinels).sum(1, keepdims=True)
    following_BS = sentinels[np.minimum(written_BS, len(sentinels) - 1)]
    said_BS = np.where(written_BS < total_B1, following_BS, end_id)
    return np.where(mark_BS, NOTHING, said_BS)
