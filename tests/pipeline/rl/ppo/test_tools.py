"""Episodes with tokens that a tool put there: read, and else nowhere counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch

from pipeline.contract.settings import Lora
from pipeline.generation.generate import Sample
from pipeline.rl.ppo.loop import run_update
from pipeline.rl.rollout.rollout import _cut

Build = Callable[..., Any]
RESULT = [70, 71, 70]
ALL = list(range(8))


@dataclass
class Interrupted:
    """Samples with an engine, and puts a result behind the second token of every other response."""

    inner: Any
    limit: int

    def sample(self, prompts: Sequence[list[int]], *, generator: torch.Generator) -> list[Sample]:
        before = self.inner.sample(prompts, generator=generator)
        known = [p + s.token_ids[:2] + RESULT for p, s in zip(prompts, before, strict=True)]
        after = self.inner.sample(known, generator=generator)
        return [
            self._joined(a, b) if place % 2 and len(a.token_ids) > 2 else a
            for place, (a, b) in enumerate(zip(before, after, strict=True))
        ]

    def _joined(self, a: Sample, b: Sample) -> Sample:
        ids = [*a.token_ids[:2], *RESULT, *b.token_ids]
        own = [True, True, *(False for _ in RESULT), *(True for _ in b.token_ids)]
        logprobs = [*a.logprobs[:2], *(0.0 for _ in RESULT), *b.logprobs]
        most = slice(self.limit)
        ended = b.ended and len(ids) <= self.limit
        return Sample(ids[most], ended, logprobs[most], own[most])

    def synchronize(self) -> None:
        self.inner.synchronize()


@pytest.fixture
def calling(make_ppo: Build) -> Build:
    """Return a builder of runs whose responses hold results: calling(**settings)."""

    def build(**settings: Any) -> Any:
        ppo = make_ppo(**{"max_new_tokens": 9, **settings})
        ppo.engine = Interrupted(ppo.engine, ppo.hyper.max_new_tokens)
        return ppo

    return build


@pytest.mark.parametrize(
    "settings",
    [
        {"score_position": "past_last"},
        {"value": "shared", "entropy_coefficient": 0.1},
        {"reuse_logprobs": True, "whiten_rewards": True},
        {"lora": Lora()},
    ],
)
def test_an_update_learns_of_the_policys_own_tokens_alone(
    calling: Build, settings: dict[str, Any]
) -> None:
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
    told = rows[1]["by_token"]
    assert told["own"] == [True, True, *(False for _ in RESULT), *(True for _ in told["own"][5:])]
    assert len(told["own"]) == len(told["text"]) and "own" not in rows[0]["by_token"]


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


def test_a_token_that_a_tool_put_there_ends_nothing() -> None:
    called = Sample([5, 70, 6, 70, 8], False, [0.0] * 5, [True, False, True, True, True])
    plain = replace(called, own=None)
    first, second = _cut([called, plain], end_ids=[70], start=0)
    assert first.token_ids == [5, 70, 6, 70] and first.own == [True, False, True, True]
    assert first.ended and first.own_ids == [5, 6, 70]
    assert second.token_ids == [5, 70] and second.own is None and second.own_ids == [5, 70]
