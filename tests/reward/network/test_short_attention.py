from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from reward.network import short_attention
from reward.network.short_attention import NAME, use_short_attention

KEYS, HEADS, LENGTH = 2, 4, 40
CPU = torch.device("cpu")


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gradients(llama: LlamaForCausalLM, ids: Tensor, *, bf16: bool, **more: Any) -> Tensor:
    llama.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = llama(ids, labels=ids, use_cache=False, **more).loss
    loss.backward()
    return torch.cat([p.grad.flatten() for p in llama.parameters() if p.grad is not None])


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the rows that went the short way."""
    lengths: list[int] = []
    apply = short_attention._Short.apply

    def counted(query: Tensor, *rest: Any) -> Any:
        lengths.append(query.shape[2])
        return apply(query, *rest)

    monkeypatch.setattr(short_attention._Short, "apply", counted)
    return lengths


def test_outputs_are_those_of_sdpa_and_gradients_as_near_to_fp32(calls: list[int]) -> None:
    ids = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    exact = gradients(model(), ids, bf16=False)
    plain = gradients(model(), ids, bf16=True)
    assert calls == []
    short = model()
    use_short_attention(short, CPU)
    found = gradients(short, ids, bf16=True)
    assert calls == [LENGTH] * 2
    assert off(found, exact) < 1.2 * off(plain, exact) < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(short(ids).logits, model()(ids).logits)


@pytest.mark.parametrize("case", ["fp32", "padded", "long", "no gradients"])
def test_all_else_is_left_to_sdpa(
    case: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    more = {}
    if case == "padded":
        more["attention_mask"] = torch.ones_like(ids).index_fill_(1, torch.tensor([0, 1]), 0)
    if case == "long":
        monkeypatch.setattr(short_attention, "LARGEST", LENGTH * LENGTH - 1)
    short, plain = model(), model()
    use_short_attention(short, CPU)
    with torch.set_grad_enabled(case != "no gradients"):
        if case == "no gradients":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(short(ids).logits, plain(ids).logits)
        else:
            found, expected = (
                gradients(m, ids, bf16=case != "fp32", **more) for m in (short, plain)
            )
            assert torch.equal(found, expected)
    assert calls == []


@pytest.mark.parametrize("at_once", [1, 2_000_000])
def test_encoders_and_cross_attention_go_the_short_way_as_well(
    calls: list[int], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    monkeypatch.setattr(short_attention, "_IN_CACHE", at_once)
    config = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS,
        dropout=0.0, attention_dropout=0.0, max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip
    models: list[Any] = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(BartForConditionalGeneration(copy.deepcopy(config)))
    plain, short = models
    use_short_attention(short, CPU)
    draw = torch.Generator().manual_seed(1)
    read, written = (torch.randint(3, 64, (3, n), generator=draw) for n in (LENGTH, 8))
    ways = (("exact", plain, False), ("plain", plain, True), ("short", short, True))
    found = {}
    for way, bart, bf16 in ways:
        bart.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            bart(read, labels=written, use_cache=False).loss.backward()
        found[way] = torch.cat([p.grad.flatten() for p in bart.parameters() if p.grad is not None])
    # What reads, what writes, and what looks from one to the other.
    assert calls == [LENGTH, 8, 8]
    assert off(found["short"], found["exact"]) < 1.2 * off(found["plain"], found["exact"]) < 0.1


@pytest.mark.parametrize("at_once", [1, 5 * HEADS * 9 * 13, 2_000_000])
def test_rows_with_a_mask_of_numbers_go_the_short_way(
    calls: list[int], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(short_attention, "_IN_CACHE", at_once)
    draw = torch.Generator().manual_seed(2)
    own = torch.full((9, 9), -torch.inf).triu(1)
    prefix = torch.zeros(7, 1, 9, 4)
    prefix[3, :, :, 2:] = -torch.inf
    mask = torch.cat([prefix, own.expand(7, 1, 9, 9)], dim=-1)
    shapes = ((7, HEADS, 9, 8), (7, KEYS, 13, 8), (7, KEYS, 13, 8))
    tensors = [torch.randn(shape, generator=draw) for shape in shapes]
    given = torch.randn((7, 9, HEADS, 8), generator=draw)
    module: Any = torch.nn.Module()
    module.num_key_value_groups = HEADS // KEYS
    found = {}
    for dtype, way in (
        (torch.float32, "exact"), (torch.bfloat16, "short"), (torch.bfloat16, "plain")
    ):  # fmt: skip
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        with monkeypatch.context() as patched:
            if way == "plain":
                patched.setattr(short_attention, "LARGEST", 0)
            query, key, value = leaves
            output, _ = short_attention.attend(module, query, key, value, mask.to(dtype))
        torch.autograd.backward(output, given.to(dtype))
        gradients = torch.cat([t.grad.float().flatten() for t in leaves if t.grad is not None])
        found[way] = output.float(), gradients
    assert calls == [9]
    assert torch.equal(found["short"][0], found["plain"][0])
    # Where torch keeps the scores in fp32 they are rounded once more.
    exact = found["exact"][1]
    assert off(found["short"][1], exact) < 1.5 * off(found["plain"][1], exact) < 0.01


def test_a_model_saves_as_it_would_have(tmp_path: Path) -> None:
    short = model()
    use_short_attention(short, CPU)
    short.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    elsewhere = model()
    use_short_attention(elsewhere, torch.device("cuda"))
    assert elsewhere.config._attn_implementation == "sdpa"
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
