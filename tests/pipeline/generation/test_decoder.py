"""The decode batch: who is in it, what is computed, and that the tokens do not depend on it."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch

from pipeline.generation.decoder import Decoder, OwnCache, _Columns
from pipeline.generation.generate import Sampling, _draw

VOCABULARY = 40
ENDS = list(range(2, 10))
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def sliding() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)).eval()


def decoder(
    model: Any, prompts: list[list[int]], limits: list[int], slots: int, **settings: Any
) -> Decoder:
    return Decoder(
        model,
        prompts,
        limits=limits,
        draw=partial(_draw, sampling=Sampling(temperature=0.0)),
        uniforms_NT=torch.zeros(len(prompts), max(limits)),
        eos_token_ids=ENDS,
        pad_token_id=0,
        slots=slots,
        **settings,
    )


def finish(made: Decoder) -> list[tuple[int, int]]:
    """Decode to the end; return the shapes (rows, columns) of what the model was given."""
    shapes: list[tuple[int, int]] = []
    handle = made.model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    while not made.done:
        made.step()
    handle.remove()
    return shapes


def alone(model: Any, prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
    """Return the greedy tokens of transformers, a prompt at a time."""
    return [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=ENDS,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt, limit in zip(prompts, limits, strict=True)
    ]


def ragged(count: int, seed: int) -> tuple[list[list[int]], list[int]]:
    draw = random.Random(seed)
    lengths = sorted((draw.randrange(1, 9) for _ in range(count)), reverse=True)
    prompts = [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]
    return prompts, [draw.randrange(1, 9) for _ in prompts]


def test_a_prompt_takes_the_place_of_a_row_that_ends(llama: Any) -> None:
    prompts = [[9, 8, 7], [8, 7, 6], [7, 6], [6]]
    limits = [8, 2, 2, 2]
    made = decoder(llama, prompts, limits, slots=2)
    made.eos = frozenset()
    shapes = finish(made)
    # Two prompts, then their second tokens; the other two join one after the other while the
    # first row goes on, which takes 7 steps as it would alone.
    assert shapes[:6] == [(2, 3), (2, 1), (1, 2), (2, 1), (1, 1), (2, 1)]
    assert shapes[6:] == [(1, 1)] * 4
    assert [len(r.token_ids) for r in made.responses] == limits
    assert made.finished == 4


def test_equal_prompts_are_computed_once(llama: Any) -> None:
    prompts = [[9, 8, 7]] * 4 + [[5, 6]] * 2
    made = decoder(llama, prompts, [3, 1, 2, 3, 3, 2], slots=2)
    read = [shape for shape in finish(made) if shape[1] > 1]
    assert read == [(1, 3), (1, 2)]
    assert not made.prefilled  # nothing is kept for prompts that are all in
    longest = made.responses[0].token_ids
    assert all(longest[: len(r.token_ids)] == r.token_ids for r in made.responses[:4])


def test_what_prompts_begin_alike_with_is_computed_once(llama: Any) -> None:
    one, other = list(range(10, 20)), list(range(20, 26))
    prompts = [[*one, 5, 6, 7], [*one, 8, 9], [*one, 8, 6], [*one, 30], [*other, 5], [*other, 6]]
    prompts += [[9, 8, 7, 6]]  # shares nothing
    limits = [5, 2, 3, 2, 4, 2, 3]
    made = decoder(llama, prompts, limits, slots=2, least_shared=4)
    read = [shape for shape in finish(made) if shape[1] > 1 or shape[0] == 1]
    assert read[:2] == [(1, 10), (2, 3)]  # the first beginning, then the rest of two prompts
    assert [shape for shape in read if shape[1] >= 4] == [(1, 10), (1, 6), (1, 4)]
    assert not made.begun  # nothing is kept of beginnings that no prompt waits for
    assert [r.token_ids for r in made.responses] == alone(llama, prompts, limits)


def test_prompts_that_wait_are_computed_together(llama: Any) -> None:
    prompts, limits = ragged(13, seed=4)
    made = decoder(llama, prompts, limits, slots=3, prefill=5)
    read = [rows for rows, columns in finish(made) if columns > 1 or rows > 3]
    assert read[:2] == [5, 5]  # the three that are let in with the next two, and so on
    assert not made.prefilled
    assert [r.token_ids for r in made.responses] == alone(llama, prompts, limits)
    # Nor are more computed at a time than asked for, where more rows are let in.
    wide = decoder(llama, prompts, limits, slots=13, prefill=5)
    assert [rows for rows, _ in finish(wide)][:3] == [5, 5, 3]
    assert [r.token_ids for r in wide.responses] == [r.token_ids for r in made.responses]


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 30])
def test_greedy_tokens_do_not_depend_on_the_batch(llama: Any, slots: int) -> None:
    prompts, limits = ragged(30, seed=slots)
    made = decoder(llama, prompts, limits, slots)
    shapes = finish(made)
    assert max(rows for rows, _ in shapes) <= slots
    assert [r.token_ids for r in made.responses] == alone(llama, prompts, limits)
    assert any(r.ended for r in made.responses) and not all(r.ended for r in made.responses)


def test_the_window_moves_back_where_memory_ends(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[int] = []
    move_back = _Columns.move_back

    def noting(self: Any, by: int, *rest: Any) -> Any:
        moves.append(by)
        return move_back(self, by, *rest)

    monkeypatch.setattr(_Columns, "move_back", noting)
    prompts, limits = ragged(60, seed=9)
    together, made = (decoder(llama, prompts, limits, slots) for slots in (60, 2))
    finish(together)
    assert not moves
    finish(made)
    assert moves and min(moves) > 0
    assert [r.token_ids for r in made.responses] == [r.token_ids for r in together.responses]


def test_a_model_with_a_cache_of_its_own_is_decoded_in_whole_batches() -> None:
    model = sliding()
    prompts, limits = ragged(10, seed=3)
    made = decoder(model, prompts, limits, slots=4)
    assert isinstance(made.cache, OwnCache)
    finish(made)
    assert [r.token_ids for r in made.responses] == alone(model, prompts, limits)
