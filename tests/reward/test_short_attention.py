from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from reward import short_attention
from reward.short_attention import NAME, use_short_attention

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
    apply = short_attention._ShortCausal.apply

    def counted(query: Tensor, *rest: Any) -> Any:
        lengths.append(query.shape[2])
        return apply(query, *rest)

    monkeypatch.setattr(short_attention._ShortCausal, "apply", counted)
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
        monkeypatch.setattr(short_attention, "LONGEST", LENGTH - 1)
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
