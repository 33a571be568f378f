"""PPO from end to end on the architectures that policies come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.rl.policy import Policy, ValueModel
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.ppo.save_models import save_models

ARCHITECTURES = {
    "llama": "LlamaFor",
    "gpt2": "GPT2",
    "qwen2": "Qwen2For",
    "gpt_neox": "GPTNeoXFor",
}


def loaded(kind: str, folder: Path) -> Any:
    """Return a checkpoint as transformers loads it, all of whose weights are there."""
    import transformers

    loader = getattr(transformers, f"AutoModelFor{kind}")
    model, told = loader.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())
    return model.eval()


@pytest.mark.parametrize("value", ["separate", "shared"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_updates_leave_models_that_transformers_loads(
    make_ppo: Callable[..., Any],
    save_policy: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
    tmp_path: Path,
    architecture: str,
    value: str,
) -> None:
    start = save_policy(tiny_tokenizer(), tmp_path / architecture, architecture=architecture)
    ppo = make_ppo(policy=start, value=value, episodes=16, tokens_per_micro_batch=30)
    first = run_update(ppo).metrics  # checks that it starts as its reference and at ratio 1
    assert first["val/rollout_difference"] < 1e-5
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert run_update(ppo).metrics["objective/kl"] != pytest.approx(0, abs=1e-5)
    save_models(ppo, tmp_path / "published")

    model = loaded("CausalLM", tmp_path / "published" / "model")
    judge = loaded("TokenClassification", tmp_path / "published" / "value_model")
    for published in (model, judge):
        assert type(published).__name__.startswith(ARCHITECTURES[architecture])
    tokens = (torch.tensor([[60, 61, 62, 63]]), torch.tensor([1]), torch.ones(1, 3).bool())
    with torch.no_grad():
        own, before = (m(*tokens).logprobs_BT for m in (ppo.policy, ppo.reference))
        assert torch.allclose(Policy(model)(*tokens).logprobs_BT, own, atol=1e-6)
        assert not torch.allclose(own, before, atol=1e-3)
        values = ppo.optimization.value
        own = ppo.policy(*tokens).values_BT if values is None else values.module(*tokens)
        assert torch.allclose(ValueModel(judge)(*tokens), own, atol=1e-6)
        assert own.abs().min() > 1e-3


def test_the_dropout_of_a_checkpoint_is_off_where_models_are_in_train_mode(
    make_ppo: Callable[..., Any],
    save_policy: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
    tmp_path: Path,
) -> None:
    # A GPT-2 says 0.1 in its configuration, and checkpointing needs its layers in train mode.
    start = save_policy(tiny_tokenizer(), tmp_path / "gpt2", architecture="gpt2")
    ppo = make_ppo(policy=start, gradient_checkpointing=True)
    for module in (ppo.policy, ppo.optimization.value.module):
        assert all(layer.training for layer in module.model.transformer.h)
        shares = {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)}
        assert shares == {0.0}
    assert run_update(ppo).metrics["val/ratio"] == pytest.approx(1, abs=1e-5)
