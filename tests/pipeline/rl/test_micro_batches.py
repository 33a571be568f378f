"""How episodes are cut into micro-batches, and that every process makes as many passes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rl.micro_batches import Limit, cut, split
from pipeline.rl.ppo.experience import Tokens
from pipeline.rl.ppo.loop import _logprobs_and_values, _roll_out
from pipeline.rl.pretraining_mix import add_pretraining_gradient
from pipeline.rl.settings import Hyperparameters

Build = Callable[..., Any]


def tokens_of(lengths: list[int]) -> Tokens:
    """Return episodes of these lengths, the last token of each its response."""
    mask_BT = torch.ones(len(lengths), 1, dtype=torch.bool)
    return Tokens(
        ids=[[row + 1] * length for row, length in enumerate(lengths)],
        starts_B=torch.tensor(lengths) - 1,
        mask_BT=mask_BT,
        value_mask_BT=mask_BT,
        pad_id=0,
        device=torch.device("cpu"),
    )


def rows_of(lengths: list[int], limit: Limit, counts: list[int] | None = None) -> list[list[int]]:
    """Return the episodes of each piece; `counts` are what each process says that it has."""
    ranks: Any = None if counts is None else SimpleNamespace(every=lambda _: counts)
    pieces = tokens_of(lengths).micro_batches(range(len(lengths)), limit=limit, world=ranks)
    return [piece.rows_M.tolist() for piece in pieces]


def test_pieces_by_number_by_hand() -> None:
    assert rows_of([2, 9, 4, 4, 7], Limit(2)) == [[1, 4], [2, 3], [0]]


def test_pieces_by_tokens_by_hand() -> None:
    lengths = [2, 9, 4, 4, 7, 3]  # longest first: 9, 7, 4, 4, 3, 2
    assert rows_of(lengths, Limit(2, 12)) == [[1], [4], [2, 3, 5], [0]]
    assert rows_of(lengths, Limit(2, 18)) == [[1, 4], [2, 3, 5, 0]]
    assert rows_of(lengths, Limit(2, 17)) == [[1], [4, 2], [3, 5, 0]]
    assert rows_of(lengths, Limit(2, 1)) == [[1], [4], [2], [3], [5], [0]]  # one at least
    assert rows_of(lengths, Limit(2, 10**9)) == [[1, 4, 2, 3, 5, 0]]


def test_pieces_are_as_wide_as_their_longest_episode() -> None:
    first, second = tokens_of([2, 5, 3]).micro_batches(range(3), limit=Limit(1, 6))
    assert first.ids_ML.tolist() == [[2] * 5]
    assert second.ids_ML.tolist() == [[3, 3, 3], [1, 1, 0]]
    assert second.starts_M.tolist() == [2, 1]


def test_the_largest_pieces_are_split_by_hand() -> None:
    lengths = [9, 4, 4, 4, 4, 4]
    pieces = [range(0, 1), range(1, 4), range(4, 6)]
    assert split(pieces, lengths, count=3) == pieces
    # 9, 12 and 8 tokens: the second goes; then the two last ones have 8 each, and 9 can't be split.
    four = [range(0, 1), range(1, 2), range(2, 4), range(4, 6)]
    assert split(pieces, lengths, count=4) == four
    assert split(pieces, lengths, count=6) == [range(i, i + 1) for i in range(6)]
    with pytest.raises(AssertionError, match="can't be split"):
        split(pieces, lengths, count=7)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 200), st.integers(0, 19)
)
def test_every_row_is_in_one_piece_and_no_piece_is_too_large(
    lengths: list[int], tokens: int, more: int
) -> None:
    lengths = sorted(lengths, reverse=True)
    pieces = cut(lengths, limit=Limit(1, tokens))
    for first, second in pairwise(pieces):  # no row more would have fitted
        assert (len(first) + 1) * lengths[first.start] > tokens and first.stop == second.start
    count = min(len(lengths), len(pieces) + more)
    found = split(pieces, lengths, count=count)
    assert len(found) == count
    assert [place for piece in found for place in piece] == list(range(len(lengths)))
    for piece in found:
        assert len(piece) == 1 or len(piece) * lengths[piece.start] <= tokens


def test_two_processes_with_unlike_lengths_make_as_many_passes() -> None:
    ours, theirs, limit = [5, 5, 2, 2, 2, 2], [9, 9, 9, 8, 8, 3], Limit(1, 20)
    counts = [len(rows_of(lengths, limit)) for lengths in (ours, theirs)]
    assert counts == [2, 3]
    one, other = (rows_of(lengths, limit, counts) for lengths in (ours, theirs))
    assert one == [[0, 1], [2, 3], [4, 5]]  # 4 x 5 and 2 x 2 tokens before
    assert other == rows_of(theirs, limit)
    # A number of rows cuts alike wherever there are as many, so that nothing is asked.
    assert rows_of(ours, Limit(2), [1, 99]) == rows_of(ours, Limit(2))


def test_scores_do_not_depend_on_how_episodes_are_cut(make_ppo: Build) -> None:
    by_number = make_ppo()
    by_tokens = make_ppo(tokens_per_micro_batch=20)
    assert by_tokens.hyper.score_limit == (64, 20) and by_tokens.hyper.update_limit == (32, 20)
    episodes = _roll_out(by_number)
    tokens, one = _logprobs_and_values(by_number, episodes)
    _, other = _logprobs_and_values(by_tokens, episodes)
    assert len(list(tokens.micro_batches(range(8), limit=by_tokens.hyper.score_limit))) > 2
    for a, b in zip(one[:4], other[:4], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_rows_of_pretraining_take_as_many_passes_as_their_longest_needs(make_ppo: Build) -> None:
    rows = [[40, 41, 42, 43, 44], [50, 51], [60, 61, 62]]
    found = []
    for limit in (Limit(3), Limit(1), Limit(3, 10), Limit(3, 4)):
        ppo = make_ppo(pretraining=rows, ptx_coefficient=1.0)
        run = ppo.optimization
        seen: list[int] = []
        run.policy.module.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(len(given[0]))
        )
        add_pretraining_gradient(
            run.policy, run.pretraining, rows=3, coefficient=1.0, limit=limit, pad_id=0,
            measure=False,
        )  # fmt: skip
        gradient = torch.cat([p.grad.flatten() for p in run.policy.parameters()])
        found.append((seen, gradient))
    assert [seen for seen, _ in found] == [[3], [1, 1, 1], [2, 1], [1, 1, 1]]
    for _, gradient in found[1:]:
        assert torch.allclose(gradient, found[0][1], atol=1e-6)


def test_a_number_of_episodes_beside_a_number_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="takes the place of micro_batch_size; leave out"):
        Hyperparameters(tokens_per_micro_batch=100, micro_batch_size=8)
    # A run's own recipe has every default written out.
    given = Hyperparameters(tokens_per_micro_batch=100)
    assert Hyperparameters(**given.model_dump()) == given
