"""One update beside a plain one in float64, written from the papers alone.

The plain update takes an episode at a time, unpadded, with Python's lists and sums: rewards as in
Ouyang et al. 2022 (equation 2), advantages as in Schulman et al. 2016 (equation 16), losses as in
Schulman et al. 2017 (equations 7 and 9) with the value clipped as in its code, Adam as in Kingma
and Ba 2015 (algorithm 1), the adaptive coefficient as in Ziegler et al. 2019 (section 2.2). Of the
engine it takes the weights, the sampled tokens, and which episodes are a minibatch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.rl.ppo.loop import _roll_out, run_update
from pipeline.rl.settings import Hyperparameters

TOLERANCE = 2e-5
"""Of losses and weights: the engine counts in float32."""
LONGEST = 12


class Letters:
    """Scores a text by its letters, from minus 2 to some 4."""

    name = "letters"

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        return [(sum(map(ord, text)) % 13) / 2 - 2 for text in responses]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and deviation; the variance divides by one less than their number."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance + 1e-8)


@dataclass
class Adam:
    parameters: list[nn.Parameter]
    hyper: Hyperparameters
    rate: float
    count: int = 0
    first: dict[int, Tensor] = field(default_factory=dict)
    second: dict[int, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        (one, two), limit = self.hyper.adam_betas, self.hyper.max_gradient_norm
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = 1.0 if limit is None or norm <= limit else limit / norm
        self.count += 1
        for place, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            taken = gradient * scale
            zero = torch.zeros_like(taken)
            self.first[place] = one * self.first.get(place, zero) + (1 - one) * taken
            self.second[place] = two * self.second.get(place, zero) + (1 - two) * taken**2
            mean = self.first[place] / (1 - one**self.count)
            deviation = (self.second[place] / (1 - two**self.count)).sqrt()
            parameter.sub_(self.rate * mean / (deviation + self.hyper.adam_epsilon))


@dataclass
class Episode:
    """What is fixed of an episode before the steps; a value more than tokens past the last one."""

    prompt: list[int]
    response: list[int]
    old: list[float]
    kl: list[float]
    values: list[float]
    rewards: list[float]
    advantages: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)


class Plain:
    """The plain update."""

    def __init__(self, ppo: Any) -> None:
        self.hyper: Hyperparameters = ppo.hyper
        self.policy = copy.deepcopy(ppo.policy.model).double()
        self.reference = copy.deepcopy(ppo.reference.model).double()
        self.value = copy.deepcopy(ppo.optimization.value.module.model).double()
        rates = (self.hyper.learning_rate, self.hyper.value_learning_rate)
        self.adams = [
            Adam(list(model.parameters()), self.hyper, rate or self.hyper.learning_rate)
            for model, rate in zip((self.policy, self.value), rates, strict=True)
        ]
        sampled = _roll_out(ppo)
        self.samples = sampled.samples
        scores = Letters().score([], sampled.texts)
        pairs = zip(sampled.prompts, sampled.samples, self.shaped(scores), strict=True)
        self.episodes = [self.episode(p.ids, s.token_ids, score) for p, s, score in pairs]
        self.kl = sum(sum(e.kl) for e in self.episodes) / len(self.episodes)
        self.estimate_advantages()

    def distributions(self, model: Any, prompt: list[int], response: list[int]) -> Tensor:
        ids = torch.tensor([prompt + response])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / self.hyper.temperature, dim=-1)

    def value_of(self, prompt: list[int], response: list[int], count: int) -> Tensor:
        logits: Tensor = self.value(torch.tensor([prompt + response])).logits[0, :, 0]
        return logits[len(prompt) - 1 : len(prompt) - 1 + count]

    def shaped(self, scores: list[float]) -> list[float]:
        hyper, found = self.hyper, []
        mean, deviation = spread(scores) if hyper.normalize_scores else (0.0, 1.0)
        for score, sample in zip(scores, self.samples, strict=True):
            score = (score - mean) / deviation
            if hyper.score_clip is not None:
                score = min(max(score, -hyper.score_clip), hyper.score_clip)
            if not sample.ended:
                score = {
                    "none": score,
                    "min": min(score, hyper.end_penalty),
                    "replace": hyper.end_penalty,
                    "subtract": score - abs(hyper.end_penalty),
                }[hyper.end_rule]
            found.append(score)
        return found

    @torch.no_grad()
    def episode(self, prompt: list[int], response: list[int], score: float) -> Episode:
        rows = range(len(response))
        old, other = (
            self.distributions(model, prompt, response)[rows, response].tolist()
            for model in (self.policy, self.reference)
        )
        kl = [a - b for a, b in zip(old, other, strict=True)]
        rewards = [-self.hyper.kl_coefficient * each for each in kl]
        if self.hyper.score_position == "past_last" and len(response) < LONGEST:
            rewards.append(0.0)
        rewards[-1] += score
        values = self.value_of(prompt, response, len(rewards)).tolist()
        return Episode(prompt, response, old, kl, values, rewards)

    def estimate_advantages(self) -> None:
        hyper = self.hyper
        if hyper.whiten_rewards:
            mean, deviation = spread([r for e in self.episodes for r in e.rewards])
            for each in self.episodes:
                each.rewards = [(r - mean) / deviation + mean for r in each.rewards]
        for each in self.episodes:
            running, following = 0.0, 0.0
            for reward, value in zip(each.rewards[::-1], each.values[::-1], strict=True):
                delta = reward + hyper.gamma * following - value
                running = delta + hyper.gamma * hyper.gae_lambda * running
                following = value
                each.advantages.insert(0, running)
                each.returns.insert(0, running + value)
            each.advantages = each.advantages[: len(each.response)]
        if hyper.whiten_advantages is True:
            self.whiten(self.episodes)

    def whiten(self, episodes: list[Episode]) -> list[Episode]:
        mean, deviation = spread([a for e in episodes for a in e.advantages])
        for each in episodes:
            each.advantages = [(a - mean) / deviation for a in each.advantages]
        return episodes

    def step(self, rows: list[int]) -> tuple[float, float]:
        """Take one step on a minibatch; return the losses before it."""
        hyper, episodes = self.hyper, [self.episodes[row] for row in rows]
        if hyper.whiten_advantages == "minibatch":
            episodes = self.whiten(copy.deepcopy(episodes))
        tokens = sum(len(e.response) for e in episodes)
        states = sum(len(e.values) for e in episodes)
        surrogate, regression, entropy = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for e in episodes:
            every = self.distributions(self.policy, e.prompt, e.response)
            entropy = entropy - (every.exp() * every).sum() / tokens
            for new, old, advantage in zip(
                every[range(len(e.response)), e.response], e.old, e.advantages, strict=True
            ):
                ratio = (new - old).exp()
                kept = ratio.clamp(1 - hyper.clip, 1 + hyper.clip)
                surrogate = surrogate - torch.min(ratio * advantage, kept * advantage) / tokens
            values = self.value_of(e.prompt, e.response, len(e.values))
            for value, before, wanted in zip(values, e.values, e.returns, strict=True):
                error = (value - wanted) ** 2
                if hyper.value_clip is not None:
                    near = before + (value - before).clamp(-hyper.value_clip, hyper.value_clip)
                    error = torch.max(error, (near - wanted) ** 2)
                regression = regression + 0.5 * error / states
        losses = (
            surrogate - hyper.entropy_coefficient * entropy,
            hyper.value_coefficient * regression,
        )
        gradients = [
            torch.autograd.grad(loss, adam.parameters)
            for loss, adam in zip(losses, self.adams, strict=True)
        ]
        for adam, gradient in zip(self.adams, gradients, strict=True):
            adam.step(gradient)
        return surrogate.item(), regression.item()

    def coefficient(self) -> float:
        """Return the KL coefficient after the update."""
        adaptive = self.hyper.adaptive_kl
        if adaptive is None:
            return self.hyper.kl_coefficient
        error = min(max(self.kl / adaptive.target - 1, -0.2), 0.2)
        share = len(self.episodes) / adaptive.horizon
        return self.hyper.kl_coefficient * (1 + error * share)


SETTINGS: dict[str, dict[str, Any]] = {
    "N+": {"end_rule": "replace", "score_position": "past_last"},
    "lmhp": {
        "end_rule": "replace", "whiten_rewards": True, "kl_coefficient": 0.15,
        "adaptive_kl": {"target": 6.0, "horizon": 100}, "clip": 0.1,
    },
    "unwhitened": {"whiten_advantages": False, "value_clip": None, "end_rule": "none"},
    "minibatches": {"whiten_advantages": "minibatch", "minibatches": 2, "end_rule": "subtract"},
    "discounts": {"gamma": 0.9, "gae_lambda": 0.7, "value_clip": 0.05, "kl_coefficient": 0.3},
    "past_discounted": {
        "gamma": 0.8, "gae_lambda": 0.5, "score_position": "past_last", "whiten_rewards": True,
        "micro_batch_size": 3,
    },
    "adaptive": {"adaptive_kl": {"target": 0.5, "horizon": 40}, "max_gradient_norm": 0.05},
    "scores": {
        "normalize_scores": True, "score_clip": 1.0, "end_penalty": -0.5, "temperature": 1.3,
        "entropy_coefficient": 0.05, "value_learning_rate": 1e-2, "value_coefficient": 0.7,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_an_update_is_the_one_of_the_papers(make_ppo: Callable[..., Any], name: str) -> None:
    common = {
        "max_new_tokens": LONGEST, "epochs": 4, "temperature": 0.7, "learning_rate": 3e-3,
        "adam_epsilon": 1e-4, "micro_batch_size": 5,
    }  # fmt: skip
    ppo = make_ppo(scorer=Letters(), **{**common, **SETTINGS[name]})
    drawn = torch.Generator().manual_seed(5)
    ppo.reference_is_start = False  # so that there is a KL
    with torch.no_grad():
        for parameter in ppo.reference.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=drawn))
        value = ppo.optimization.value.module.model.score
        value.weight.copy_(0.3 * torch.randn(value.weight.shape, generator=drawn))
    ppo.engine = replace(ppo.engine, end_ids=list(range(20, 60)))  # some responses end
    start = [p.detach().clone() for p in ppo.policy.model.parameters()]
    plain = Plain(ppo)
    ended = {sample.ended for sample in plain.samples}
    lengths = {len(sample.token_ids) for sample in plain.samples}
    assert ended == {True, False} and len(lengths) > 3 and abs(plain.kl) > 0.01
    run, found = ppo.optimization, list[Any]()
    honest = run.run

    def watched(*given: Any, **named: Any) -> Any:
        found.append(honest(*given, **named))
        return found[-1]

    run.run = watched
    whole = list(range(len(plain.episodes)))
    metrics = run_update(ppo).metrics
    cuts = [
        sorted(rows)
        for epoch in range(4)
        for rows in run._minibatches(_Tokens(len(whole)), 0, epoch)
    ]
    losses = [plain.step(rows) for rows in cuts]
    told = [(step.policy_loss, step.value_loss) for step in found[0].steps]
    assert len(told) == 4 * ppo.hyper.minibatches
    for ours, theirs in zip(told, losses, strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)
    assert metrics["objective/kl"] == pytest.approx(plain.kl, abs=TOLERANCE)
    assert ppo.kl_coefficient == pytest.approx(plain.coefficient(), abs=1e-6)
    moved = zip(start, ppo.policy.model.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in moved) > 1e-3
    for ours_model, theirs_model in (
        (ppo.policy.model, plain.policy),
        (run.value.module.model, plain.value),
    ):
        for ours_p, theirs_p in zip(
            ours_model.parameters(), theirs_model.parameters(), strict=True
        ):
            assert torch.allclose(ours_p.double(), theirs_p, atol=TOLERANCE, rtol=0)


class _Tokens:
    """So many episodes, all that minibatches are cut by."""

    def __init__(self, count: int) -> None:
        self.tokens, self.ids = self, range(count)
