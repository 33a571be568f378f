"""PPO from end to end on encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.errors import ModelError
from pipeline.models.load import load_tokenizer
from pipeline.rl.policy import Policy, ValueModel
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.ppo.save_models import save_models

Build = Callable[..., Any]


@pytest.fixture
def make_pair_ppo(make_ppo: Build, save_pair: Build) -> Build:
    """Return a builder of runs: make_pair_ppo("t5", **make_ppo's arguments)."""

    def build(architecture: str, **settings: Any) -> Any:
        start = save_pair(architecture, hidden_size=8, layers=1)
        return make_ppo(policy=start, tokenizer=load_tokenizer(start), **settings)

    return build


def loaded(folder: Path) -> Any:
    """Return a checkpoint as transformers loads it, all of whose weights are there."""
    from transformers import AutoModelForSeq2SeqLM

    model, told = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "value"),
    [
        ("t5", "separate"),
        ("bart", "shared"),
        pytest.param("t5", "shared", marks=pytest.mark.slow),
        pytest.param("bart", "separate", marks=pytest.mark.slow),
    ],
)
def test_two_updates_leave_models_that_transformers_loads(
    make_pair_ppo: Build, tmp_path: Path, architecture: str, value: str
) -> None:
    ppo = make_pair_ppo(architecture, value=value, episodes=16, tokens_per_micro_batch=30)
    first = run_update(ppo).metrics  # checks that it starts as its reference and at ratio 1
    assert first["val/rollout_difference"] < 1e-5
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert run_update(ppo).metrics["objective/kl"] != pytest.approx(0, abs=1e-5)
    save_models(ppo, tmp_path / "published")

    model = loaded(tmp_path / "published" / "model")
    tokens = (torch.tensor([[60, 61, 62, 63]]), torch.tensor([1]), torch.ones(1, 3).bool())
    head = torch.nn.Linear(8, 1)
    head.load_state_dict(load_file(tmp_path / "published" / "value_head.safetensors"))
    with torch.no_grad():
        own, before = (m(*tokens).logprobs_BT for m in (ppo.policy, ppo.reference))
        assert torch.allclose(Policy(model)(*tokens).logprobs_BT, own, atol=1e-6)
        assert not torch.allclose(own, before, atol=1e-3)
        values = ppo.optimization.value
        assert (values is None) == (value == "shared")
        read = model if values is None else loaded(tmp_path / "published" / "value_model")
        own = ppo.policy(*tokens).values_BT if values is None else values.module(*tokens)
        assert torch.allclose(ValueModel(read, head)(*tokens), own, atol=1e-6)
        assert own.abs().min() > 1e-3


def test_micro_batches_change_nothing(make_pair_ppo: Build) -> None:
    settings = {"score_position": "past_last", "max_gradient_norm": 0.5, "whiten_rewards": True}
    weights = []
    for limit in ({"micro_batch_size": 8}, {"tokens_per_micro_batch": 20}):
        ppo = make_pair_ppo("t5", **settings, **limit)
        run_update(ppo)
        parts = (ppo.policy, ppo.optimization.value.module)
        weights.append(torch.cat([p.detach().flatten() for m in parts for p in m.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], atol=2e-4, rtol=0)


def test_a_reference_is_of_the_policys_kind(
    make_pair_ppo: Build, make_ppo: Build, save_policy: Build, tmp_path: Path
) -> None:
    from pipeline.rl.ppo.build import _fitting

    ppo = make_pair_ppo("t5")
    causal = save_policy(ppo.tokenizer, tmp_path / "causal")
    with pytest.raises(ModelError, match="one of them alone is an encoder-decoder"):
        _fitting(ppo.policy.model, causal, trust=False)
