"""The reward model as an adapter: published merged and apart, and hung onto a trunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import ModelError
from reward.adapters import Trunk
from reward.model import RewardModel
from reward.on_trunk import adapt, hang, publish

TEXTS = (["zu", "bab", "ab"], ["ab", "zz", "b a b"])


@pytest.fixture(params=["llama", "gpt2"])
def decoder(checkpoint: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    return checkpoint(request.param)


def trained(folder: Path) -> tuple[RewardModel, Trunk]:
    """A reward model on an adapter that says something."""
    model = RewardModel.start(folder, seed=0)
    trunk = adapt(model, base="sft", rank=2, alpha=4, targets="all-linear", seed=0)
    torch.manual_seed(5)
    for parameter in trunk.parameters("reward"):
        torch.nn.init.normal_(parameter, std=0.3)
    model.set_bias(0.25)
    return model, trunk


def test_the_head_and_the_adapter_alone_are_trained(decoder: Path) -> None:
    model, trunk = trained(decoder)
    names = [n for n, p in model.module.named_parameters() if p.requires_grad]
    assert "classifier.score.weight" in names
    assert all(".lora_" in name or ".score." in name for name in names)
    assert len(names) == len(trunk.parameters("reward")) + 1


def test_merged_and_hung_it_scores_as_it_did_in_training(decoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, trunk = trained(decoder)
    expected = model.score(*TEXTS)
    publish(model, trunk, tmp_path)
    assert model.score(*TEXTS) == expected
    merged = RewardModel.load(tmp_path / "model", device="cpu")
    assert merged.score(*TEXTS) == pytest.approx(expected, abs=1e-5)

    policy = Trunk(AutoModelForCausalLM.from_pretrained(decoder).eval(), base="sft")
    policy.add("policy", rank=2, alpha=4, targets="all-linear", seed=1)
    before = sum(p.numel() for p in policy.model.parameters())
    ids = torch.tensor([[3, 4, 5]])
    said = policy.model(ids).logits
    hung = hang(policy, tmp_path / "model", name="reward0", device="cpu", batch_size=2)
    assert hung.score(*TEXTS) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(policy.model(ids).logits, said)  # the policy's adapter is active again
    # What came is the adapter and a head: no second set of weights.
    adapter = sum(p.numel() for p in policy.parameters("reward0"))
    everything = {id(p): p.numel() for p in policy.model.parameters()}
    everything |= {id(p): p.numel() for p in hung.module.parameters()}
    head = hung.module.classifier.score.weight.numel()
    assert sum(everything.values()) == before + adapter + head
    assert not any(p.requires_grad for p in hung.module.classifier.score.parameters())
    policy.model.train()
    hung.score(*TEXTS)
    assert policy.model.training


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_loads_the_adapter_with_its_head(decoder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model, trunk = trained(decoder)
    publish(model, trunk, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(
        decoder, num_labels=1, pad_token_id=model.pad_id
    )
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ids = model.encoder.encode("zu", "ab")
    found = theirs(torch.tensor([ids])).logits[0, 0].item()
    assert found + 0.25 == pytest.approx(model.score(["zu"], ["ab"])[0], abs=1e-5)


def test_encoders_and_reward_models_without_an_adapter_are_refused(
    checkpoint: Callable[[str], Path], decoder: Path
) -> None:
    model = RewardModel.start(checkpoint("bert"), seed=0)
    with pytest.raises(ModelError, match="is an encoder"):
        adapt(model, base="x", rank=2, alpha=4, targets="all-linear", seed=0)
    with pytest.raises(ModelError, match="has no adapter beside it"):
        hang(None, decoder, name="r", device="cpu", batch_size=1)  # type: ignore[arg-type]


def test_a_trunk_of_another_architecture_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model, trunk = trained(checkpoint("llama"))
    publish(model, trunk, tmp_path)
    other: Any = AutoModelForCausalLM.from_pretrained(checkpoint("gpt2"))
    with pytest.raises(ModelError, match="can't share a trunk"):
        hang(Trunk(other, base="x"), tmp_path / "model", name="r", device="cpu", batch_size=1)
