"""Adapters on a trunk: exact when off, when merged, and when put back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import ModelError
from reward.network.lora import Trunk
from reward.network.lora_files import adapter_folder, read_origin, trunk_digest

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=24, tie_word_embeddings=True))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, intermediate_size=24))


IDS = torch.tensor([[3, 4, 5, 6], [9, 8, 7, 6]])
MODELS = pytest.mark.parametrize("build", [llama, gpt2, neox])


def adapted(build: Callable[[], Any], *names: str) -> Trunk:
    """A trunk whose adapters say something, all in other ways."""
    torch.manual_seed(0)
    trunk = Trunk(build().eval(), base="somewhere")
    for place, name in enumerate(names or ("policy",)):
        trunk.add(name, rank=2 + place, alpha=4, targets="all-linear", seed=place)
        for parameter in trunk.parameters(name):
            torch.nn.init.normal_(parameter, std=0.2)
    trunk.use("policy")
    return trunk


def logits(trunk: Trunk) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = trunk.model(IDS).logits
    return found


@MODELS
def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(
    build: Callable[[], Any],
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    before = model(IDS).logits
    trunk = Trunk(model, base="somewhere")
    trunk.add("policy", rank=2, alpha=4, targets="all-linear", seed=0)
    assert torch.equal(logits(trunk), before)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in trunk.parameters("policy")}
    assert trunk_digest(model) == trunk.digest


@MODELS
def test_off_is_the_base_and_merged_is_on_and_both_leave_no_trace(
    build: Callable[[], Any],
) -> None:
    torch.manual_seed(0)
    base = build().eval()(IDS).logits
    trunk = adapted(build, "policy", "reward")
    weights = {k: v.clone() for k, v in trunk.model.state_dict().items()}
    on = logits(trunk)
    assert (on - base).abs().max() > 1e-2
    with trunk.using(None):
        assert torch.equal(logits(trunk), base)
    with trunk.using("reward"):
        other = logits(trunk)
    assert (other - on).abs().max() > 1e-2
    for name, expected in (("policy", on), ("reward", other)):
        with trunk.merged(name):
            assert torch.allclose(logits(trunk), expected, atol=1e-6)
            assert not any("lora" in key for key in trunk.model.state_dict())
    assert torch.equal(logits(trunk), on)
    after = trunk.model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in weights.items())


@MODELS
def test_gradients_are_those_of_pefts_own_layers(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    from reward.network.lora import AdaptedLinear

    trunk = adapted(build)

    def gradients() -> tuple[torch.Tensor, torch.Tensor]:
        trunk.model.zero_grad()
        found = trunk.model(IDS).logits
        found.square().sum().backward()
        own = [p.grad.flatten() for p in trunk.parameters("policy") if p.grad is not None]
        return found.detach(), torch.cat(own)

    ours = gradients()
    monkeypatch.setattr(AdaptedLinear, "forward", Linear.forward)
    for mine, theirs in zip(ours, gradients(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_the_first_layer_by_hand() -> None:
    """y = x (W + s B A)^T: W the identity, A picks the first input, B writes it to the second."""
    from reward.network.lora import _Adapted

    x = torch.tensor([[2.0, 3.0]], requires_grad=True)
    down, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
    down.requires_grad_(), up.requires_grad_()
    y = _Adapted.apply(x, torch.eye(2), None, down, up, 0.5)
    assert y.tolist() == [[2.0, 4.0]]
    y[0, 1].backward()
    assert x.grad is not None and x.grad.tolist() == [[0.5, 1.0]]
    assert down.grad is not None and down.grad.tolist() == [[1.0, 1.5]]
    assert up.grad is not None and up.grad.tolist() == [[0.0], [1.0]]


@MODELS
@pytest.mark.parametrize("merge_in_bf16", [False, True], ids=["outside", "inside"])
def test_in_bf16_the_result_is_that_of_the_merged_weights(
    build: Callable[[], Any], merge_in_bf16: bool
) -> None:
    """Whether autocast is on or off where they are merged: sampling merges before it is on."""
    trunk = adapted(build)
    bf16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    with bf16():
        found = trunk.model(IDS).logits
        found.float().square().sum().backward()
    with bf16(enabled=merge_in_bf16), trunk.merged("policy"), bf16():
        assert torch.equal(trunk.model(IDS).logits, found)
    with trunk.merged("policy"):
        plain = {k: v.clone() for k, v in trunk.model.state_dict().items()}
    with bf16(), trunk.merged("policy"):
        assert all(torch.equal(v, plain[k]) for k, v in trunk.model.state_dict().items())
    grads = [p.grad for p in trunk.parameters("policy")]
    assert all(g is not None and g.dtype == torch.float32 for g in grads)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_what_is_saved_loads_in_peft_and_on_the_same_trunk(tmp_path: Path) -> None:
    from peft import PeftModel

    trunk = adapted(llama)
    trunk.save("policy", tmp_path / "adapter", task="CAUSAL_LM")
    torch.manual_seed(0)
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "adapter").eval()
    assert torch.allclose(theirs(IDS).logits, logits(trunk), atol=1e-5)
    torch.manual_seed(0)
    again = Trunk(llama().eval(), base="elsewhere")
    again.add("mine", rank=1, alpha=1, targets=("q_proj",), seed=0)
    assert again.load("policy", tmp_path / "adapter") == {}
    assert again._places[0].layer.using == "mine"
    assert not any(p.requires_grad for p in again.parameters("policy"))
    assert all(p.requires_grad for p in again.parameters("mine"))
    with again.using("policy"):
        assert torch.equal(logits(again), logits(trunk))
    assert read_origin(tmp_path / "adapter").base == "somewhere"
    assert adapter_folder(tmp_path / "model") == tmp_path / "adapter"
    assert adapter_folder(tmp_path / "other" / "model") is None


def test_an_adapter_of_another_trunk_is_refused_with_both_digests(tmp_path: Path) -> None:
    trunk = adapted(llama)
    trunk.save("policy", tmp_path / "adapter", task="CAUSAL_LM")
    torch.manual_seed(1)
    other = Trunk(llama(), base="elsewhere")
    with pytest.raises(ModelError, match=f"{trunk.digest[:12]}, this one has {other.digest[:12]}"):
        other.load("policy", tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not tell the adapter's trunk"):
        other.load("policy", tmp_path)


def test_targets_that_are_no_linear_layers_are_refused() -> None:
    trunk = Trunk(llama(), base="somewhere")
    for strange in ("lm_head", "embed_tokens", "c_attn"):
        with pytest.raises(ModelError, match=f"{strange}.*there are down_proj, gate_proj"):
            trunk.add("policy", rank=2, alpha=4, targets=("q_proj", strange), seed=0)


def test_an_error_in_the_block_still_puts_the_weights_back() -> None:
    trunk = adapted(llama)
    before = logits(trunk)
    with pytest.raises(RuntimeError, match="in between"), trunk.merged("policy"):
        raise RuntimeError("in between")
    with pytest.raises(RuntimeError, match="in between"), trunk.using(None):
        raise RuntimeError("in between")
    assert torch.equal(logits(trunk), before)
