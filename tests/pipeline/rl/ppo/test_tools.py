"""Episodes with tokens that a tool put there: read, and else nowhere counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pipeline.contract.settings import Lora
from pipeline.generation.tools.calls import Asked, Call
from pipeline.models.load import load_tokenizer
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.settings import Hyperparameters
from reward.computed.rules import rule

Build = Callable[..., Any]
RESULT = [70, 71, 70]
ALL = list(range(8))


class Often:
    """A form of calls that every second response makes with its second token, whatever it is."""

    def asked(self, ids: Sequence[int], begin: int, *, ended: bool) -> list[Asked]:
        calls = len(ids) == 2 and ids[0] % 2 and not ended
        return [Asked("calculator", ["6*7"])] if calls else []

    def clean(self, result: str) -> str:
        return result

    def answer(self, calls: Sequence[Call]) -> list[int]:
        return RESULT

    def text(self, calls: Sequence[Call]) -> None:
        return None


@pytest.fixture
def calling(make_ppo: Build) -> Build:
    """Return a builder of runs whose responses hold results: calling(**settings)."""

    def build(**settings: Any) -> Any:
        ppo = make_ppo(**{"max_new_tokens": 9, "tools": ["calculator"], **settings})
        ppo.engine.tools.form = Often()
        return ppo

    return build


@pytest.mark.parametrize(
    "settings",
    [
        {"score_position": "past_last"},
        {"value": "shared", "entropy_coefficient": 0.1},
        {"reuse_logprobs": True, "whiten_rewards": True},
        {"lora": Lora()},
        {"architecture": "t5"},
    ],
)
def test_an_update_learns_of_the_policys_own_tokens_alone(
    calling: Build, save_pair: Build, settings: dict[str, Any]
) -> None:
    if "architecture" in settings:
        start = save_pair(settings["architecture"], hidden_size=8, layers=1)
        settings = {"policy": start, "tokenizer": load_tokenizer(start)}
    ppo = calling(**settings)
    seen, run = {}, ppo.optimization.run

    def noted(learned: Any, **more: Any) -> Any:
        seen["learned"] = learned
        return run(learned, **more)

    ppo.optimization.run = noted
    result = run_update(ppo)  # the invariants hold: the ratio is 1, the KL 0
    learned, rows = seen["learned"], cast(list[dict[str, Any]], result.samples)
    mask_BT, states_BT = learned.tokens.mask_BT, learned.tokens.value_mask_BT
    assert any("tool_tokens" in row for row in rows) and mask_BT.shape[1] == 9
    for figures in (learned.logprobs_BT, learned.entropies_BT, learned.advantages_BT):
        assert not figures[~mask_BT].any()
    for figures in (learned.values_BT, learned.returns_BT, learned.rewards_BT):
        assert not figures[~states_BT].any()
    metrics, tokens = result.metrics, int(mask_BT.sum())
    assert metrics["val/rollout_difference"] < 1e-5
    assert metrics["objective/response_length"] == tokens / 8
    assert [row["tokens"] for row in rows] == mask_BT.sum(1).tolist()
    entropy = learned.entropies_BT[mask_BT].mean().item()
    assert metrics["policy/entropy_avg"] == pytest.approx(entropy, abs=1e-5)
    for row in (row for row in rows if "by_token" in row):
        own = row["by_token"].get("own", [])
        assert ("calls" in row) == (own[2:5] == [False] * 3) == (own.count(False) == 3)
        assert len(own) in (0, len(row["by_token"]["text"]))
    assert metrics["objective/calls"] == sum(len(row.get("calls", [])) for row in rows) / 8
    call = {"name": "calculator", "arguments": {"expression": "6*7"}, "result": "42"}
    assert {**call, "error": False, "cut": False} in [c for r in rows for c in r.get("calls", [])]


@pytest.mark.parametrize("position", ["last", "past_last"])
def test_micro_batches_change_no_gradient(
    calling: Build, experience_of: Build, position: str
) -> None:
    found, figures = [], []
    for micro in (8, 3):
        ppo = calling(micro_batch_size=micro, score_position=position, entropy_coefficient=0.1)
        run, learned = ppo.optimization, experience_of(ppo)
        figures.append(run._minibatch_gradient(learned, ALL, warming=False))
        learners = (run.policy, run.value)
        found.append(torch.cat([p.grad.flatten() for each in learners for p in each.parameters()]))
    holes_BT = ~learned.tokens.mask_BT[:, :-1] & learned.tokens.mask_BT[:, 1:]
    assert holes_BT.any()
    for other, told in zip(found[1:], figures[1:], strict=True):
        assert torch.allclose(found[0], other, atol=1e-6)
        assert told == pytest.approx(figures[0], abs=1e-6)


def test_the_policys_gradient_is_that_of_its_own_tokens_in_the_whole_text(
    calling: Build, experience_of: Build
) -> None:
    ppo = calling(temperature=0.7)
    learned = experience_of(ppo)
    ppo.optimization._minibatch_gradient(learned, ALL, warming=False)
    parameters = ppo.optimization.policy.parameters()
    gradients = [p.grad.clone() for p in parameters]
    ppo.policy.zero_grad()
    total, tokens = torch.zeros(()), learned.tokens
    for row in ALL:  # at ratio 1 the gradient of -A * ratio is that of -A * log pi
        start, ids = int(tokens.starts_B[row]), torch.tensor([tokens.ids[row]])
        logits = ppo.policy.model(ids).logits[0, start - 1 : -1] / 0.7
        logprobs = logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
        width = len(logprobs)
        own = tokens.mask_BT[row, :width]
        total = total - (learned.advantages_BT[row, :width] * logprobs)[own].sum()
    (total / tokens.mask_BT.sum()).backward()
    for mine, parameter in zip(gradients, parameters, strict=True):
        assert torch.allclose(mine, parameter.grad, atol=1e-6)


def test_rewards_of_length_are_told_the_policys_own_tokens(calling: Build) -> None:
    class Length:
        name = "length"

        def score(self, prompts: Any, responses: Any) -> list[float]:
            raise AssertionError("it looks at the facts")

        def score_informed(self, prompts: Any, responses: Any, facts: Any) -> list[float]:
            return [float(tokens) for tokens in facts.tokens]

    rows = run_update(calling(scorer=Length(), end_rule="none")).samples
    assert any("tool_tokens" in row for row in rows)
    assert all(row["score"] == row["tokens"] for row in rows)


@pytest.mark.slow
def test_it_learns_to_call(make_ppo: Build, save_policy: Build, sums: Any, tmp_path: Path) -> None:
    ppo = make_ppo(
        policy=save_policy(sums, tmp_path / "sums"), tokenizer=sums, first=0,
        scorer=rule("regex", pattern=r"<<6\*7=42>>"),  # hardly ever written without the calculator
        tools=["calculator"], value="shared", episodes=40 * 32, batch_size=32, epochs=2,
        max_new_tokens=10, learning_rate=2e-2, kl_coefficient=0.01, end_rule="none",
    )  # fmt: skip
    seen: list[dict[str, float]] = []
    while len(seen) < 40 and sum(each["objective/scores"] for each in seen[-3:]) / 3 <= 0.7:
        seen.append(run_update(ppo).metrics)
    first, last = seen[0], seen[-1]
    assert first["objective/scores"] < 0.2 and last["objective/scores"] > 0.5
    assert first["objective/calls"] < 0.5 < last["objective/calls"]
    assert last["objective/failed_call_share"] == 0


def test_what_samples_without_tools_refuses_them() -> None:
    with pytest.raises(ValueError, match="vllm calls no tools; set"):
        Hyperparameters(tools=["calculator"], rollout={"engine": "vllm"})
    with pytest.raises(ValueError, match="end_after cuts off responses that are sampled already"):
        Hyperparameters(tools=["calculator"], end_after=3)
