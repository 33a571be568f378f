"""Decoding in bf16 on a processor: packed weights give what plain ones give, and leave no trace."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.generation.generate import Sampling, generate
from pipeline.generation.packed_weights import has_bf16_blocks, packed_weights
from pipeline.models.architectures import Shape, build_policy

ARCHITECTURES = ("llama", "gpt2", "qwen2", "gpt_neox")
PACKED = "mkldnn._linear_pointwise.default"
STEPS = 8
"""From how many on weights are packed here; it takes more where that is to save time."""
needs_bf16 = pytest.mark.skipif(not has_bf16_blocks(), reason="the processor has no bf16 products")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.packed_weights.LEAST_STEPS", STEPS)


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def plain(self) -> int:
        """Products of plain weights; those of rotary angles and attention are batched."""
        return self.counts["aten.mm.default"] + self.counts["aten.addmm.default"]


@contextlib.contextmanager
def computing(model: Any, *, cast: bool) -> Iterator[None]:
    """Compute in bf16: by autocast over weights in fp32, or with weights in bf16."""
    if cast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    else:
        model.to(torch.bfloat16)
        yield


def policy(architecture: str, tokenizer: Any) -> Any:
    shape = Shape(
        hidden_size=32, layers=2, heads=4, kv_heads=4, intermediate_size=64, context_length=128
    )
    return build_policy(architecture, shape, tokenizer, seed=0).eval()  # type: ignore[arg-type]


def answers(model: Any, steps: int, *, temperature: float = 0.0, wide: bool = False) -> list[Any]:
    return generate(
        model,
        [[5, 6, 7], [8, 9], [5, 6, 7], [10, 11, 12, 13]],
        sampling=Sampling(steps, temperature=temperature),
        eos_token_ids=[],
        pad_token_id=0,
        generator=torch.Generator().manual_seed(0),
        batch_size=2,
        wide=wide,
    )


@needs_bf16
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_are_those_of_plain_weights(
    architecture: str, cast: bool, tiny_tokenizer: Any
) -> None:
    model = policy(architecture, tiny_tokenizer())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad(), computing(model, cast=cast):
        plain = model(input_ids=ids).logits
        with packed_weights(model, rows=2, steps=STEPS), Operations() as done:
            packed = model(input_ids=ids).logits
        after = model(input_ids=ids).logits
    assert done.plain == 0 and done.counts[PACKED] >= 9
    assert packed.dtype == plain.dtype
    assert torch.allclose(packed, plain, atol=0.02 * float(plain.abs().max()), rtol=0)
    assert torch.equal(after, plain)


@needs_bf16
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "bf16"])
def test_generation_reads_packed_weights_where_there_are_many_tokens(
    cast: bool, tiny_tokenizer: Any
) -> None:
    model = policy("llama", tiny_tokenizer())
    with computing(model, cast=cast):
        answers(model, STEPS // 2)  # it is tried once, with the weights as they are
        # Two batches one after the other.
        for tokens, expected in ((STEPS // 2, True), (STEPS // 2 - 1, False)):
            with Operations() as done:
                answers(model, tokens)
            assert (done.plain == 0, done.counts[PACKED] > 0) == (expected, expected)
    assert not any("forward" in vars(module) for module in model.modules())


@needs_bf16
def test_the_next_responses_are_of_the_new_weights(tiny_tokenizer: Any) -> None:
    model = policy("llama", tiny_tokenizer()).to(torch.bfloat16)
    before = answers(model, STEPS)
    other = policy("llama", tiny_tokenizer())
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.load_state_dict(other.to(torch.bfloat16).state_dict())
    after = answers(model, STEPS)
    assert after != before
    assert after == answers(other, STEPS)


@needs_bf16
def test_logprobs_are_those_that_the_model_gives_afterwards(tiny_tokenizer: Any) -> None:
    model = policy("llama", tiny_tokenizer())
    prompt = [5, 6, 7]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample = answers(model, 4 * STEPS, temperature=1.0)[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + sample.token_ids])).logits[0]
    logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
    exact = logprobs.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
    assert float((torch.tensor(sample.logprobs) - exact).abs().mean()) < 1e-2


@needs_bf16
def test_a_second_copy_of_large_weights_is_not_made(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = policy("llama", tiny_tokenizer())
    monkeypatch.setattr("pipeline.generation.packed_weights.MOST_BYTES", 1000)
    # Under autocast it stands in place of another.
    for cast, packed in ((True, True), (False, False)):
        with computing(model, cast=cast), Operations() as done:
            answers(model, STEPS)
        assert (done.counts[PACKED] > 0) == packed


@needs_bf16
def test_a_layer_that_the_model_keeps_in_fp32_stays_there(tiny_tokenizer: Any) -> None:
    model = policy("llama", tiny_tokenizer())
    states = torch.randn(2, 32)
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        packed_weights(model, rows=2, steps=STEPS),
    ):
        assert model.lm_head(states).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            found = model.lm_head(states)
    assert torch.equal(found, states @ model.lm_head.weight.T)


@pytest.mark.parametrize("large", [2**24, 0], ids=["transposed", "blocks"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_weights_that_are_laid_out_give_the_same_logits(
    architecture: str, large: int, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.generation.packed_weights.LARGE", large)
    model = policy(architecture, tiny_tokenizer())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with packed_weights(model, rows=2, steps=STEPS, fp32=True), Operations() as done:
            laid_out = model(input_ids=ids).logits
            packed = any("forward" in vars(module) for module in model.modules())
        after = model(input_ids=ids).logits
    assert packed and (done.counts[PACKED] > 0) == (large == 0)
    assert torch.allclose(laid_out, plain, atol=1e-5) and torch.equal(after, plain)
    plain_answers = answers(model, STEPS)
    monkeypatch.setattr("pipeline.generation.generate.MOST_KEYS", 0)  # as many rows as before
    wide = answers(model, STEPS, wide=True)
    for one, other in zip(plain_answers, wide, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_fp32_is_left_alone_where_it_is_not_asked_for(tiny_tokenizer: Any) -> None:
    model = policy("llama", tiny_tokenizer())
    with Operations() as done:
        answers(model, STEPS)
    assert done.counts[PACKED] == 0 and done.plain > 0


@needs_bf16
def test_what_runs_otherwise_stays_and_an_error_leaves_no_trace(tiny_tokenizer: Any) -> None:
    model = policy("llama", tiny_tokenizer()).to(torch.bfloat16)

    def own(input: torch.Tensor) -> torch.Tensor:
        return input.new_zeros((*input.shape[:-1], model.lm_head.out_features))

    model.lm_head.forward = own
    made = model.model.layers[1].mlp.up_proj  # its weight is no parameter, as one that is computed
    weight = made.weight.detach()
    del made.weight
    made.weight = weight
    with (
        pytest.raises(KeyboardInterrupt),
        packed_weights(model, rows=2, steps=STEPS),
    ):
        assert model.lm_head.forward is own
        assert "forward" in vars(model.model.layers[0].mlp.up_proj)
        assert "forward" not in vars(made)
        raise KeyboardInterrupt
    assert [name for name, m in model.named_modules() if "forward" in vars(m)] == ["lm_head"]
