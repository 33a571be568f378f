"""PPO with one model of full size: reference, policy, value and reward on one trunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.contract.resume import ResumeStore
from pipeline.contract.settings import Lora
from pipeline.rl.micro_batches import Limit
from pipeline.rl.policy import Policy
from pipeline.rl.ppo.experience import sampled_logprobs
from pipeline.rl.ppo.loop import _logprobs_and_values, _roll_out, restore, run_update, save
from pipeline.rl.ppo.save_models import save_models

Build = Callable[..., Any]
LORA = Lora(rank=4, alpha=8)


def untouched(tmp_path: Path) -> Any:
    from pipeline.models.load import load_policy

    return load_policy(tmp_path / "start")


def test_the_reference_is_the_untouched_base_however_far_the_policy_went(
    make_ppo: Build, tmp_path: Path
) -> None:
    ppo = make_ppo(lora=LORA, episodes=24, kl_coefficient=0.0)
    for _ in range(2):
        run_update(ppo)
    tokens, scored = _logprobs_and_values(ppo, _roll_out(ppo))
    (piece,) = tokens.micro_batches(range(8), limit=Limit(8))
    batch = (piece.ids_ML, piece.starts_M, piece.mask_MT)
    with torch.no_grad():
        expected = Policy(untouched(tmp_path))(*batch).logprobs_BT
    found = scored.reference_BT[piece.rows_M, : piece.mask_MT.shape[1]]
    assert torch.equal(found, expected)
    assert (scored.logprobs_BT - scored.reference_BT).abs().max() > 1e-3
    # sampled with merged weights, scored with the adapter on
    assert scored.difference < 1e-4


REFILLED = {"batch_size": 16, "generation_batch_size": 3, "max_new_tokens": 30}
FAR = {"lora": Lora(rank=16, alpha=64), "learning_rate": 1e-1, "temperature": 0.7}


@pytest.mark.parametrize("more", [{}, {"temperature": 0.3}, FAR, REFILLED])
def test_the_sampler_and_the_trainer_differ_by_rounding_alone(
    make_ppo: Build, more: dict[str, Any]
) -> None:
    """Merged weights, a cache of keys and padding on the left give what one plain pass gives."""
    ppo = make_ppo(**{"lora": LORA, "episodes": 64, "kl_coefficient": 0.0, **more})
    for _ in range(3):
        assert run_update(ppo).metrics["val/rollout_difference"] < 1e-6
    episodes = _roll_out(ppo)
    tokens, scored = _logprobs_and_values(ppo, episodes)
    sampled_BT = sampled_logprobs(episodes, tokens.mask_BT)
    assert (sampled_BT - scored.logprobs_BT).abs().max() < 5e-6
    # The policy has moved by far more than that, so that older weights would show.
    assert (scored.logprobs_BT - scored.reference_BT).abs().max() > 1e-2


def test_one_set_of_weights_is_held_and_the_adapters_alone_are_trained(
    make_ppo: Build, tmp_path: Path
) -> None:
    def held(ppo: Any) -> int:
        value = ppo.optimization.value
        modules = [ppo.policy, ppo.reference, *([] if value is None else [value.module])]
        return sum({id(p): p.numel() for m in modules for p in m.parameters()}.values())

    apart, one = make_ppo(), make_ppo(lora=LORA)
    full = sum(p.numel() for p in untouched(tmp_path).parameters())
    adapter = sum(p.numel() for p in one.policy.trunk.parameters("policy"))
    head = one.policy.value_head.weight.numel() + 1
    assert held(one) == full + adapter + head
    assert held(apart) > 2.5 * full
    (group,) = one.optimization.policy.optimizer.param_groups
    assert sum(p.numel() for p in group["params"]) == adapter + head


def test_it_learns_to_say_what_is_rewarded(
    learn: Build, tiny_policy: Build, tiny_tokenizer: Build, tmp_path: Path
) -> None:
    # The output head is frozen, and a new one is too small to tell any two tokens apart.
    policy = tiny_policy(tiny_tokenizer(), hidden=64)
    with torch.no_grad():
        policy.lm_head.weight.mul_(10)
    policy.save_pretrained(tmp_path / "loud")

    class Common:
        """Many letters are wanted: with a rare one, rounding decides when it is first met."""

        name = "common"

        def score(self, prompts: Any, responses: Any) -> list[float]:
            return [sum(c in "aeiounrst" for c in text) / max(1, len(text)) for text in responses]

    scores = learn(0.4, policy=tmp_path / "loud", lora=Lora(rank=8, alpha=16), scorer=Common())
    assert scores[0] < 0.1
    assert sum(scores[-5:]) / 5 > 0.4


def test_a_resume_state_is_small_and_exact(make_ppo: Build, tmp_path: Path) -> None:
    more = {"lora": LORA, "episodes": 32, "ema_decay": 0.9, "reuse_logprobs": True}
    whole = make_ppo(**more)
    rows = [run_update(whole).metrics for _ in range(4)]
    states = ResumeStore(tmp_path / "resume", "key")
    cut = make_ppo(**more)
    for _ in range(2):
        run_update(cut)
    save(cut, states)
    trained = {n for n, p in cut.policy.named_parameters() if p.requires_grad}
    assert set(cut.optimization.policy.state()["module"]) == trained
    again = make_ppo(**more)
    assert restore(again, states)
    timeless = [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in (run_update(again).metrics, run_update(again).metrics)
    ]
    assert timeless == [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in rows[2:]
    ]
    ours, theirs = again.policy.state_dict(), whole.policy.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_what_is_published_is_merged_and_apart(make_ppo: Build, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    ppo = make_ppo(lora=LORA, episodes=16)
    for _ in range(2):
        run_update(ppo)
    ids = torch.tensor([[60, 61, 62, 63, 64]])
    starts, mask = torch.tensor([2]), torch.ones((1, 3), dtype=torch.bool)
    with torch.no_grad():
        said = ppo.policy.model(ids).logits
        values = ppo.policy(ids, starts, mask, only_values=True).values_BT
        assert torch.equal(values, ppo.policy(ids, starts, mask).values_BT)
    save_models(ppo, tmp_path / "out")
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()
        assert torch.allclose(merged(ids).logits, said, atol=1e-5)
        value = AutoModelForTokenClassification.from_pretrained(tmp_path / "out" / "value_model")
        assert torch.allclose(value.eval()(ids).logits[0, 1:4, 0], values[0], atol=1e-5)
        theirs = PeftModel.from_pretrained(untouched(tmp_path), tmp_path / "out" / "adapter")
        assert torch.allclose(theirs.eval()(ids).logits, said, atol=1e-5)
        assert torch.equal(ppo.policy.model(ids).logits, said)


def test_the_head_may_have_a_rate_of_its_own(make_ppo: Build) -> None:
    ppo = make_ppo(lora=LORA, episodes=16, value_learning_rate=5e-2)
    learner = ppo.optimization.policy
    learner.step(norm=1.0, share=0.5, max_norm=None)
    body, head = learner.optimizer.param_groups
    assert (body["lr"], head["lr"]) == (5e-3, 2.5e-2)
    assert len(head["params"]) == 2


def test_gradient_checkpointing_changes_no_gradient(make_ppo: Build) -> None:
    found = []
    for setting in (False, True):
        ppo = make_ppo(lora=LORA, gradient_checkpointing=setting, learning_rate=1e-2)
        run_update(ppo)
        assert ppo.policy.model.model.layers[0].training == setting
        found.append(torch.cat([p.flatten() for p in ppo.optimization.policy.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize("models", [{}, {"value": "shared"}, {"lora": LORA}])
def test_reused_logprobs_are_those_of_the_policy(make_ppo: Build, models: dict[str, Any]) -> None:
    plain, reusing = make_ppo(**models), make_ppo(**models, reuse_logprobs=True)
    rows = []
    for ppo in (plain, reusing):
        run_update(ppo)
        rows.append(_logprobs_and_values(ppo, _roll_out(ppo)))
    reused, own = rows[1][1], rows[0][1]
    sampled_BT = sampled_logprobs(_roll_out(reusing), rows[1][0].mask_BT)
    assert torch.equal(reused.logprobs_BT, sampled_BT)
    assert torch.allclose(reused.logprobs_BT, own.logprobs_BT, atol=1e-4)
    assert torch.allclose(reused.values_BT, own.values_BT, atol=1e-4)
    assert torch.allclose(reused.reference_BT, own.reference_BT, atol=1e-4)
    # A roll-out that does not agree is computed again.
    episodes = _roll_out(reusing)
    for sample in episodes.samples:
        sample.logprobs[0] -= 0.01
    _, scored = _logprobs_and_values(reusing, episodes)
    assert scored.difference > 1e-4
    assert torch.allclose(scored.logprobs_BT, own.logprobs_BT, atol=1e-4)
    assert (scored.logprobs_BT - sampled_BT).abs().max() < 1e-4
