"""What makes an update faster changes nothing in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from data.errors import ModelError
from pipeline.contract.resume import ResumeStore
from pipeline.contract.settings import Lora
from pipeline.models.compile import compile_layers, refuse_sharded
from pipeline.models.load import halve_products
from pipeline.rl.ppo.loop import restore, run_update, save
from pipeline.rl.rollout.rollout import _cast_once

pytestmark = pytest.mark.first

Build = Callable[..., Any]
COMPARED = ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "val/ratio")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile with")


def weights(ppo: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in ppo.optimization.policy.parameters()])


@needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # asked for by torch's own compiler
@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_compiled_layers_learn_what_plain_ones_do_and_resume_exactly(
    make_ppo: Build, tmp_path: Path, lora: Any
) -> None:
    settings: dict[str, Any] = {"episodes": 32, "epochs": 2, "micro_batch_size": 3, "lora": lora}
    plain, compiled = make_ppo(**settings), make_ppo(compile=True, **settings)
    names = set(compiled.optimization.policy.module.state_dict())
    assert names == set(plain.optimization.policy.module.state_dict())
    store = ResumeStore(tmp_path / "resume", "key")
    for update in range(3):
        expected, found = run_update(plain).metrics, run_update(compiled).metrics
        for name in COMPARED:
            assert found[name] == pytest.approx(expected[name], abs=2e-5), (update, name)
        if update == 0:
            save(compiled, store)
    resumed = make_ppo(compile=True, **settings)
    restore(resumed, store)
    for _ in range(2):
        run_update(resumed)
    assert torch.equal(weights(resumed), weights(compiled))


def test_compiling_without_a_compiler_is_one_sentence(
    make_ppo: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ModelError, match=r"no-such-compiler.*compile: false"):
        make_ppo(compile=True)
    compile_layers(llama(tied=True), torch.device("cuda"))  # which needs none
    with pytest.raises(ModelError, match=r"not for sharded weights.*ddp\.yaml"):
        refuse_sharded(True)


@needs_compiler
def test_a_model_whose_layers_are_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(tied=True)
    monkeypatch.setattr(model, "_no_split_modules", None)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*compile: false"):
        compile_layers(model, torch.device("cpu"))


def llama(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    )


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2"])
def test_halved_products_say_the_same_in_mixed_precision(kind: str) -> None:
    model = gpt2() if kind == "gpt2" else llama(tied=kind == "tied")
    model.requires_grad_(False).eval()
    ids = torch.arange(20)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(ids).logits
        before = sum(p.nbytes for p in model.parameters())
        halve_products(model)
        assert torch.equal(model(ids).logits, expected)
    assert sum(p.nbytes for p in model.parameters()) < 0.75 * before
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_frozen_weights_are_frozen_again_after_sampling() -> None:
    model = llama(tied=True)
    model.model.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(KeyError), _cast_once(model):
        assert all(p.requires_grad for p in model.parameters())
        raise KeyError
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
