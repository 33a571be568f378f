"""Which rankings are held out, seen at which step, and dealt to which process."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from data.records import Ranking
from reward.learned.batching import (
    EncodedRanking,
    encode_rankings,
    micro_batches,
    step_indices,
    steps_per_epoch,
)
from reward.learned.encoding import Encoder


def ranking(prompt: str, ranks: list[int], annotator: str = "") -> Ranking:
    return Ranking(prompt, [f"c{i}" for i in range(len(ranks))], ranks, annotator=annotator)


def test_rankings_that_tie_throughout_are_dropped_and_counted(tokenizer: Any) -> None:
    rows = [ranking("a", [1, 1]), ranking("b", [1, 2, 2])]
    kept, dropped = encode_rankings(rows, encoder=Encoder(tokenizer, 64))
    assert dropped == 1
    assert [(len(r.sequences), r.ranks) for r in kept] == [(3, [1, 2, 2])]
    kept, dropped = encode_rankings(rows, encoder=Encoder(tokenizer, 64), ties="half")
    assert (len(kept), dropped) == (2, 0)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_sees_every_prompt_once(n: int, batch: int, seed: int) -> None:
    steps = steps_per_epoch(n_prompts=n, prompts_per_step=batch)
    for epoch in (0, 1):
        seen = [
            i
            for step in range(epoch * steps, (epoch + 1) * steps)
            for i in step_indices(n_prompts=n, prompts_per_step=batch, step=step, seed=seed)
        ]
        assert sorted(seen) == list(range(n))


def test_epochs_and_seeds_differ_in_order() -> None:
    first, second, other = (
        step_indices(n_prompts=50, prompts_per_step=50, step=step, seed=seed)
        for step, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert first != second
    assert first != other


shapes = st.lists(st.tuples(st.integers(2, 5), st.integers(1, 30)), min_size=1, max_size=20)


@given(shapes, st.integers(1, 200), st.integers(1, 4))
def test_every_ranking_is_dealt_once_and_budgets_are_kept(
    rows: list[tuple[int, int]], tokens: int, world: int
) -> None:
    rankings = [EncodedRanking([[7] * length] * k, list(range(1, k + 1))) for k, length in rows]
    plans = micro_batches(rankings, tokens=tokens, world_size=world)
    assert len(plans) == world
    assert len({len(plan) for plan in plans}) == 1
    dealt = [i for plan in plans for micro in plan for i in micro]
    assert sorted(dealt) == list(range(len(rankings)))
    for micro in (m for plan in plans for m in plan if len(m) > 1):
        n_rows = sum(len(rankings[i].sequences) for i in micro)
        assert n_rows * max(rankings[i].longest for i in micro) <= tokens


def test_a_completion_that_was_cut_off_is_learnt_without_an_end(tokenizer: Any) -> None:
    row = Ranking("the mill", [" is old", " is"], [1, 2], ended=[True, False])
    (encoded,), _ = encode_rankings([row], encoder=Encoder(tokenizer, 64))
    whole, cut = (tokenizer.decode(ids) for ids in encoded.sequences)
    assert whole.endswith("the mill is old<|end|>") and cut.endswith("the mill is")
