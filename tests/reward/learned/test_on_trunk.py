"""The reward model as an adapter: published merged and apart, and attached to a trunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import ModelError
from reward.learned.model import RewardModel
from reward.learned.on_trunk import adapt, attach, save_models
from reward.learned.rows import collate
from reward.network.lora import AdaptedLinear, Trunk

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
    save_models(model, trunk, tmp_path)
    assert model.score(*TEXTS) == expected
    merged = RewardModel.load(tmp_path / "model", device="cpu")
    assert merged.score(*TEXTS) == pytest.approx(expected, abs=1e-5)

    policy = Trunk(AutoModelForCausalLM.from_pretrained(decoder).eval(), base="sft")
    policy.add("policy", rank=2, alpha=4, targets="all-linear", seed=1)
    before = sum(p.numel() for p in policy.model.parameters())
    ids = torch.tensor([[3, 4, 5]])
    said = policy.model(ids).logits
    attached = attach(policy, tmp_path / "model", name="reward0", device="cpu", batch_size=2)
    assert attached.score(*TEXTS) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(policy.model(ids).logits, said)  # the policy's adapter is active again
    # What came is the adapter and a head: no second set of weights.
    adapter = sum(p.numel() for p in policy.parameters("reward0"))
    everything = {id(p): p.numel() for p in policy.model.parameters()}
    everything |= {id(p): p.numel() for p in attached.module.parameters()}
    head = attached.module.classifier.score.weight.numel()
    assert sum(everything.values()) == before + adapter + head
    assert not any(p.requires_grad for p in attached.module.classifier.score.parameters())
    policy.model.train()
    attached.score(*TEXTS)
    assert policy.model.training


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_loads_the_adapter_with_its_head(decoder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model, trunk = trained(decoder)
    save_models(model, trunk, tmp_path)
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
        attach(None, decoder, name="r", device="cpu", batch_size=1)  # type: ignore[arg-type]


def test_a_trunk_of_another_architecture_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model, trunk = trained(checkpoint("llama"))
    save_models(model, trunk, tmp_path)
    other: Any = AutoModelForCausalLM.from_pretrained(checkpoint("gpt2"))
    with pytest.raises(ModelError, match="can't share a trunk"):
        attach(Trunk(other, base="x"), tmp_path / "model", name="r", device="cpu", batch_size=1)


TREE = [[9, 8, 7, 6, 20], [9, 8, 7, 21, 22], [9, 8, 7, 6, 6, 23, 24]]


def tree_scores(model: RewardModel, *, as_trees: bool) -> torch.Tensor:
    found: torch.Tensor = model.module(*collate([TREE], as_trees=as_trees, pad_id=model.pad_id))
    return found


def test_an_adapter_takes_trees_with_the_gradients_of_rows(decoder: Path) -> None:
    model, trunk = trained(decoder)
    assert model.module.takes_trees
    trained_parts = [*trunk.parameters("reward"), model.module.classifier.score.weight]
    weights = torch.tensor([1.0, -2.0, 0.5])
    found = []
    for as_trees in (True, False):
        model.module.zero_grad()
        scores = tree_scores(model, as_trees=as_trees)
        (scores * weights).sum().backward()
        found.append(
            [scores.detach(), *(p.grad.clone() for p in trained_parts if p.grad is not None)]
        )
    assert len(found[0]) == len(trained_parts) + 1
    for of_trees, of_rows in zip(*found, strict=True):
        torch.testing.assert_close(of_trees, of_rows, atol=1e-5, rtol=1e-4)
    with torch.no_grad(), trunk.using(None):
        assert not torch.allclose(tree_scores(model, as_trees=True), found[0][0])


def test_models_on_one_trunk_all_take_trees(decoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, own = trained(decoder)
    save_models(model, own, tmp_path)
    with torch.no_grad():
        expected = tree_scores(model, as_trees=False)
    plain = AutoModelForCausalLM.from_pretrained(decoder).eval()
    trunk = Trunk(plain, base="sft")
    trunk.add("policy", rank=2, alpha=4, targets="all-linear", seed=1)
    ids_1L = torch.tensor([[3, 4, 5, 6]])
    said = plain(ids_1L).logits
    written = plain.generate(ids_1L, max_new_tokens=5, do_sample=False)
    for name in ("reward0", "reward1"):
        attached = attach(trunk, tmp_path / "model", name=name, device="cpu", batch_size=2)
        assert attached.module.takes_trees
        with torch.no_grad():
            torch.testing.assert_close(
                tree_scores(attached, as_trees=True), expected, atol=1e-5, rtol=1e-5
            )
    # The policy computes what it did, bit for bit.
    assert torch.equal(plain(ids_1L).logits, said)
    assert torch.equal(plain.generate(ids_1L, max_new_tokens=5, do_sample=False), written)


def test_an_adapter_that_mixes_branches_up_is_computed_in_rows(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel.start(decoder, seed=0)
    assert model.module.takes_trees

    def forward(layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        return layer.base_layer(x.cumsum(1))  # each token sees what is packed before it

    monkeypatch.setattr(AdaptedLinear, "forward", forward)
    adapt(model, base="sft", rank=2, alpha=4, targets="all-linear", seed=0)
    assert not model.module.takes_as_trees(TREE)
    single = [model.raw_scores([ids])[0] for ids in TREE]
    assert model.raw_scores(TREE) == pytest.approx(single, abs=1e-4)
