"""Batches of fine-tuning, and dropout, apart from any run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import RecipeError
from pipeline.stages.sft.order import BucketSampler, add_residual_dropout
from pipeline.training.settings import micro_batches


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 7),
    epoch=st.integers(0, 3),
    grouped=st.booleans(),
)
def test_an_epoch_holds_every_row_once(
    lengths: list[int], size: int, epoch: int, grouped: bool
) -> None:
    sampler = BucketSampler(lengths, batch_size=size, seed=3, grouped=grouped)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert list(sampler) == order  # nothing but seed and epoch decides


def test_grouped_batches_waste_less_padding() -> None:
    lengths = [(17 * place) % 40 + 1 for place in range(400)]

    def padded(grouped: bool) -> int:
        order = list(BucketSampler(lengths, batch_size=8, seed=0, grouped=grouped))
        return sum(8 * max(lengths[i] for i in order[s : s + 8]) for s in range(0, 400, 8))

    assert padded(True) < 1.05 * sum(lengths) < padded(False)


def test_micro_batches_divide_the_batch() -> None:
    assert micro_batches(32, None, 1) == (32, 1)
    assert micro_batches(32, 4, 2) == (4, 4)
    with pytest.raises(RecipeError, match="micro_batch_size 5"):
        micro_batches(32, 5, 1)
    with pytest.raises(RecipeError, match="3 processes"):
        micro_batches(32, None, 3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dropout_acts_in_training_alone(tiny_tokenizer: Any, tiny_policy: Any, kind: str) -> None:
    tokenizer = tiny_tokenizer()
    if kind == "llama":
        model = tiny_policy(tokenizer)
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=16,
                n_layer=1,
                n_head=2,
                resid_pdrop=0.0,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=6,
            )
        )
    ids = torch.tensor([[7, 8, 9, 10]])
    plain = model.eval()(ids).logits
    add_residual_dropout(model, 0.5)
    assert torch.equal(model.eval()(ids).logits, plain)
    assert not torch.allclose(model.train()(ids).logits, plain)
