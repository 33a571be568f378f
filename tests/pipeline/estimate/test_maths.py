"""FLOPs and bytes by hand, beside what autograd really keeps, and properties."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.estimate.model import memory
from pipeline.estimate.model.flops import (
    Rows,
    attention_flops,
    decoding_flops,
    forward_flops,
    logit_flops,
    matrix_flops,
    training_flops,
)
from pipeline.estimate.model.memory import decoding_memory
from pipeline.estimate.model.shapes import ModelShape, shape_of_config, shape_of_size
from pipeline.estimate.model.sources import Lengths

TWO_BLOCKS = ModelShape(
    name="m", layers=2, hidden=8, heads=2, kv_heads=1, head_size=4, intermediate=16, vocabulary=10,
    parameters=1264, matrices=1152,
)  # fmt: skip
# q 8x8, k and v 8x4 each, o 8x8, gate, up and down 8x16 each: 576 a block.


def test_flops_of_a_forward_pass_by_hand() -> None:
    assert matrix_flops(TWO_BLOCKS, 3) == 2 * 1152 * 3
    assert attention_flops(TWO_BLOCKS, 9) == 2 * (2 * 8 * 9 + 2 * 8 * 9)
    assert logit_flops(TWO_BLOCKS, 2) == 2 * 8 * 10 * 2
    assert forward_flops(TWO_BLOCKS, Rows.alike(1, 3), positions=2) == 6912 + 576 + 320


def test_a_ranking_counts_what_its_completions_begin_with_once() -> None:
    # 10 tokens of prompt; answers of 6 and 8 tokens, 2 of which both begin with.
    read = Lengths(1, [10.0], [7.0], [8.0], 2.0, [2.0])
    (tree,) = read.trees(math.inf)
    assert (tree.prefix, tree.branch, tree.widest, tree.tokens) == (12.0, 5.0, 6.0, 22.0)
    # the prefix on itself, two branches padded to 6 on the prefix and themselves
    assert tree.squares == 12 * 12 + 2 * 6 * (12 + 6)
    (cut,) = read.trees(11.0)
    assert (cut.prefix, cut.branch, cut.tokens) == (10.0, 1.0, 12.0)


def test_training_is_three_passes_and_attention_three_and_a_half() -> None:
    rows = Rows.alike(4, 3)
    trunk, attention = matrix_flops(TWO_BLOCKS, 12), attention_flops(TWO_BLOCKS, 36)
    logits = logit_flops(TWO_BLOCKS, 12)
    plain = training_flops(TWO_BLOCKS, rows, positions=12)
    assert plain == 3 * trunk + 3.5 * attention + 3 * logits
    again = training_flops(TWO_BLOCKS, rows, positions=12, recompute=True, recompute_logits=True)
    assert again == 4 * trunk + 4.5 * attention + 4 * logits
    adapter = training_flops(TWO_BLOCKS, rows, positions=12, trained_share=0.0)
    assert adapter == 2 * trunk + 3.5 * attention + 2 * logits


@given(st.integers(1, 50), st.integers(1, 50))
def test_decoding_costs_what_one_pass_over_the_response_costs_less_its_logits(
    prompt: int, new: int
) -> None:
    """Token by token the blocks do the same products; attention is that of the causal half."""
    found = decoding_flops(TWO_BLOCKS, rows=1, prompt=prompt, new=new)
    blocks = matrix_flops(TWO_BLOCKS, prompt + new - 1) + logit_flops(TWO_BLOCKS, new)
    seen = prompt**2 + sum(range(prompt + 1, prompt + new))
    assert found == pytest.approx(blocks + attention_flops(TWO_BLOCKS, seen))


def test_a_prompt_is_computed_once_for_its_answers() -> None:
    one = decoding_flops(TWO_BLOCKS, rows=4, prompt=20, new=1)
    assert decoding_flops(TWO_BLOCKS, rows=4, prompt=20, new=1, answers=4) == one / 4


def test_the_cache_is_twice_as_long_where_responses_wait() -> None:
    def found(responses: float, batch: int, answers: int = 1) -> dict[str, float]:
        return decoding_memory(
            TWO_BLOCKS, responses=responses, batch=batch, prompt=10, new=5, key=4, value=4,
            bf16=False, answers=answers,
        )  # fmt: skip

    exact = found(60, 60)
    assert found(60 + 1e-9, 64) == exact  # as divisions leave it
    assert found(61, 60)["KV cache"] == 2 * exact["KV cache"]
    assert found(60, 60, answers=4)["activations"] == exact["activations"] / 4
    assert found(2, 2, answers=4)["activations"] == found(1, 1)["activations"]


def test_bytes_of_a_block_by_hand() -> None:
    # fp32, a token: two norms of 3 x 8, queries and output 8 each, keys and values 4 each, one
    # number a head for the softmax, four tensors of the feed-forward width; and the last norm.
    block = 4 * (2 * 3 * 8 + 2 * 8 + 2 * 4 + 2 + 4 * 16)
    found = memory.activation_bytes(TWO_BLOCKS, rows=3, length=5, bf16=False)
    assert found == 15 * (2 * block + 4 * 3 * 8)
    kept = memory.activation_bytes(TWO_BLOCKS, rows=3, length=5, bf16=False, checkpointed=True)
    assert kept == 15 * (2 * 4 * 8 + 4 * 3 * 8)
    assert memory.block_bytes(TWO_BLOCKS, rows=3, length=5, bf16=False) == 15 * block
    masked = memory.block_bytes(TWO_BLOCKS, rows=3, length=5, bf16=False, masked=True)
    # Keys and values are repeated for both query heads; the mask is 3 x 5 x 5 numbers.
    assert masked == 15 * (block + 4 * 2 * 4) + 4 * 75


def test_bytes_of_cache_logits_gradients_and_adapters_by_hand() -> None:
    assert memory.cache_bytes(TWO_BLOCKS, rows=3, tokens=7, key=4, value=2) == 2 * 3 * 7 * 4 * 6
    assert memory.logit_bytes(TWO_BLOCKS, positions=6, copies=3) == 4 * 3 * 6 * 10
    assert memory.gradient_bytes(100, buckets=False) == 400
    assert memory.gradient_bytes(100, buckets=True) == 800
    # q 8+8, k and v 8+4 each, o 8+8, three of 8+16.
    assert memory.adapter_parameters(TWO_BLOCKS, rank=2) == 2 * 2 * (16 + 24 + 16 + 72)
    assert memory.cast_bytes(TWO_BLOCKS, bf16=True) == 2 * (1152 + 80)
    assert memory.cast_bytes(TWO_BLOCKS, bf16=False) == 0


@given(rows=st.integers(1, 9), length=st.integers(1, 99), bf16=st.booleans(), mask=st.booleans())
def test_more_rows_take_more_and_bf16_and_checkpointing_less(
    rows: int, length: int, bf16: bool, mask: bool
) -> None:
    deep = replace(TWO_BLOCKS, layers=12)
    args: dict[str, Any] = {"rows": rows, "length": length, "masked": mask}
    plain = memory.activation_bytes(deep, bf16=bf16, **args)
    assert memory.activation_bytes(deep, bf16=bf16, checkpointed=True, **args) < plain
    assert memory.activation_bytes(deep, bf16=True, **args) <= plain
    more = {**args, "rows": rows + 1}
    assert memory.activation_bytes(deep, bf16=bf16, **more) > plain


def built(architecture: Any, kv_heads: int) -> tuple[Any, ModelShape]:
    from transformers import AutoModelForCausalLM

    from pipeline.models.architectures import Shape, model_config

    shape = Shape(
        hidden_size=64, layers=3, heads=4, kv_heads=kv_heads, intermediate_size=160,
        context_length=128,
    )  # fmt: skip
    config = model_config(architecture, shape, vocabulary=400)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model, shape_of_config(config, name=architecture)


def kept_for_backward(model: Any, *, bf16: bool, masked: bool) -> int:
    """Return the bytes of the storages that autograd saves, weights apart."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    mask = torch.ones(4, 64, dtype=torch.long)
    mask[0, 60:] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        output = model.base_model(
            input_ids=torch.randint(0, 400, (4, 64)),
            attention_mask=mask if masked else None,
            use_cache=False,
        )
    assert output is not None
    return sum(kept.values())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("architecture", "kv_heads", "bf16"),
    [
        ("llama", 4, False), ("llama", 2, False), ("llama", 4, True), ("llama", 2, True),
        ("qwen2", 2, False), ("qwen2", 2, True), ("gpt2", 4, False), ("gpt2", 4, True),
        ("gpt_neox", 4, False), ("gpt_neox", 4, True),
    ],
)  # fmt: skip
def test_activations_beside_what_autograd_keeps(
    architecture: Any, kv_heads: int, bf16: bool, masked: bool
) -> None:
    model, shape = built(architecture, kv_heads)
    shape = replace(shape, fp32_powers=False)  # as on this processor
    told = memory.activation_bytes(shape, rows=4, length=64, bf16=bf16, masked=masked)
    told += memory.cast_bytes(shape, bf16=bf16, head=False)
    assert told == pytest.approx(kept_for_backward(model, bf16=bf16, masked=masked), rel=0.06)


def test_a_gpu_keeps_the_power_in_gelu_and_what_follows_in_fp32() -> None:
    _, shape = built("gpt2", 4)
    on_gpu, on_cpu = (
        memory.block_bytes(replace(shape, fp32_powers=there), rows=2, length=8, bf16=True)
        for there in (True, False)
    )
    # Of five tensors of the feed-forward layer's width three are in 4 bytes and not in 2.
    assert on_gpu - on_cpu == 2 * 8 * 3 * 2 * shape.intermediate


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_parameters_without_weights_are_those_of_the_model(architecture: Any) -> None:
    model, shape = built(architecture, 4)
    assert shape.parameters == model.num_parameters()
    matrices = [
        p for n, p in model.named_parameters() if (p.ndim > 1 and "layers" in n) or ".h." in n
    ]
    assert shape.matrices == sum(p.numel() for p in matrices if p.ndim > 1)
    assert shape.tied


def test_experts_count_as_often_as_a_token_passes_them() -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    shape = shape_of_config(config, name="m")
    attention, router, expert = 4 * 32 * 32, 32 * 8, 3 * 32 * 64
    assert shape.matrices == attention + router + 2 * expert
    assert shape.parameters > attention + router + 8 * expert


@given(st.floats(1e5, 1e12))
def test_a_guessed_shape_has_the_parameters_that_were_given(parameters: float) -> None:
    shape = shape_of_size(parameters, name="m")
    assert shape.guessed
    assert shape.parameters == int(parameters)
    assert 0 < shape.matrices <= shape.parameters
    assert shape.vocabulary >= 1 and shape.layers >= 1


@pytest.mark.parametrize(
    ("objective", "architecture"),
    [("masked", "bert"), ("masked", "albert"), ("span_corruption", "t5"), ("denoising", "bart")],
)
def test_other_objectives_are_counted_as_torch_counts_them(
    objective: Any, architecture: Any
) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    from pipeline.contract.settings import SourceSettings
    from pipeline.estimate.stages.training import _row_flops, pretraining_tokens
    from pipeline.models.architectures import model_config
    from pipeline.stages.pretrain.settings import PretrainSettings

    settings = PretrainSettings(
        objective=objective, architecture=architecture, tokenizer="tok",
        train=[SourceSettings(world="corpus")],
        hidden_size=64, layers=3, heads=4, context_length=64,
    )  # fmt: skip
    config = model_config(
        settings.architecture, settings.shape, vocabulary=200, pad_token_id=0, eos_token_id=1,
        bos_token_id=2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    tokens = pretraining_tokens(settings)
    auto = AutoModelForSeq2SeqLM if tokens.written else AutoModelForMaskedLM
    model = auto.from_config(config)
    inputs = {"input_ids": torch.ones(1, tokens.read, dtype=torch.long)}
    if tokens.written:
        inputs["decoder_input_ids"] = torch.ones(1, tokens.written, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    shape = shape_of_config(config, name="m")
    whole = replace(tokens, predicted=tokens.written or tokens.read)  # all logits, here
    # A backward pass is twice the forward one; 2.5 times by our count, in attention alone.
    assert 3 * counter.get_total_flops() == pytest.approx(
        _row_flops(shape, whole, recompute=False), rel=0.06
    )
    assert shape.parameters == sum(p.numel() for p in model.parameters())
