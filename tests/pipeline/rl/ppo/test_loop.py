from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.errors import TrainingError
from pipeline.generation.generate import Sample
from pipeline.rl.learner import Average, rate_share
from pipeline.rl.ppo.loop import _roll_out, run_update
from pipeline.rl.ppo.optimize import Steps
from pipeline.rl.processes import World
from pipeline.rl.rewards import RunningMoments
from pipeline.rl.settings import Hyperparameters

Build = Callable[..., Any]


def gradients(learner: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])


def test_it_learns_to_say_what_is_rewarded(learn: Build) -> None:
    scores = learn(0.5)
    assert scores[0] < 0.1
    assert sum(scores[-5:]) / 5 > 0.5


def test_it_learns_with_a_head_on_the_trunk(learn: Build) -> None:
    scores = learn(0.5, value="shared")
    assert sum(scores[-5:]) / 5 > 0.5


def test_a_strong_kl_penalty_keeps_the_policy_where_it_was(make_ppo: Build) -> None:
    def final_kl(coefficient: float) -> float:
        ppo = make_ppo(
            episodes=15 * 16,
            batch_size=16,
            epochs=2,
            kl_coefficient=coefficient,
            end_rule="none",
            schedule="constant",
        )
        for _ in range(15):
            kl = run_update(ppo).metrics["objective/kl"]
        return float(kl)

    assert final_kl(5.0) < 0.5 * final_kl(0.0)


@pytest.mark.parametrize("value", ["separate", "shared"])
@pytest.mark.parametrize(
    "cut", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"tokens_per_micro_batch": 20}]
)
def test_micro_batches_change_no_gradient(
    make_ppo: Build, experience_of: Build, value: str, cut: dict[str, int]
) -> None:
    found, figures = [], []
    for settings in ({"micro_batch_size": 8}, cut):
        ppo = make_ppo(value=value, **settings, entropy_coefficient=0.1)
        run = ppo.optimization
        figures.append(run._minibatch_gradient(experience_of(ppo), list(range(8)), warming=False))
        found.append([gradients(each) for each in (run.policy, run.value) if each is not None])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_micro_batches_change_no_gradient_with_the_score_past_the_last_token(
    make_ppo: Build,
    experience_of: Build,
) -> None:
    found, figures = [], []
    for micro in (8, 3, 1):
        ppo = make_ppo(micro_batch_size=micro, score_position="past_last", max_new_tokens=60)
        _random_values(ppo)
        run, learned = ppo.optimization, experience_of(ppo)
        extra = learned.tokens.value_mask_BT & ~learned.tokens.mask_BT
        assert extra.any() and learned.values_BT[extra].all()
        assert not learned.advantages_BT[extra].any() and learned.returns_BT[extra].any()
        figures.append(run._minibatch_gradient(learned, list(range(8)), warming=False))
        found.append(torch.cat([gradients(run.policy), gradients(run.value)]))
    for other, told in zip(found[1:], figures[1:], strict=True):
        assert torch.allclose(found[0], other, atol=1e-6)
        assert told == pytest.approx(figures[0], abs=1e-6)


def _random_values(ppo: Any) -> None:
    """Give the value model a head that says something."""
    head = ppo.optimization.value.module.model.score
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))


def test_roll_out_agrees_with_the_policy_and_the_reference_at_the_start(make_ppo: Build) -> None:
    ppo = make_ppo(temperature=0.7, epochs=2, minibatches=2)
    metrics = run_update(ppo).metrics
    assert metrics["val/rollout_difference"] < 1e-5
    assert metrics["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["val/steps"] == 4


def test_a_policy_that_is_not_its_reference_stops_the_run(make_ppo: Build) -> None:
    ppo = make_ppo()
    with torch.no_grad():
        next(iter(ppo.policy.parameters())).add_(0.3)
    with pytest.raises(TrainingError, match="differs from its reference"):
        run_update(ppo)


def test_dropout_stops_the_run(make_ppo: Build) -> None:
    ppo = make_ppo(max_new_tokens=12)
    attention = ppo.policy.model.model.layers[0].self_attn
    attention.attention_dropout = 0.9
    ppo.policy.train()
    with pytest.raises(TrainingError, match="dropout"):
        run_update(ppo)


def test_scores_that_are_not_finite_stop_the_run(make_ppo: Build) -> None:
    class Broken:
        name = "broken"

        def score(self, prompts: Any, responses: Any) -> list[float]:
            return [math.nan] * len(prompts)

    with pytest.raises(TrainingError, match="reward broken gave a score that is not finite"):
        run_update(make_ppo(scorer=Broken()))


def test_a_loss_that_is_not_finite_stops_before_the_step(
    make_ppo: Build, experience_of: Build
) -> None:
    ppo = make_ppo(episodes=16)
    before = ppo.policy.model.lm_head.weight.clone()
    sample = experience_of(ppo)
    sample.advantages_BT[0, 0] = math.inf
    with pytest.raises(TrainingError, match="policy_loss became"):
        ppo.optimization.run(sample, update=1, check=False)
    assert torch.equal(before, ppo.policy.model.lm_head.weight)


@pytest.mark.parametrize("broken", ["policy", "value"])
def test_a_gradient_that_is_not_finite_leaves_all_weights_alone(
    make_ppo: Build, broken: str
) -> None:
    ppo = make_ppo(epochs=2, ema_decay=0.5)
    learners = {"policy": ppo.optimization.policy, "value": ppo.optimization.value}
    before = {n: [p.clone() for p in each.parameters()] for n, each in learners.items()}
    # The losses stay finite: the gradient of one weight alone does not.
    first = learners[broken].parameters()[0]
    first.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=f"gradient norm of the {broken} became .* at update 1"):
        run_update(ppo)
    for name, learner in learners.items():
        pairs = zip(before[name], learner.parameters(), strict=True)
        assert all(torch.equal(old, new) for old, new in pairs)
        assert not learner.optimizer.state


def test_the_epochs_end_early_when_the_policy_moves_too_far(make_ppo: Build) -> None:
    far = make_ppo(epochs=6, early_stop_kl=1e-4)
    assert 1 < run_update(far).metrics["val/steps"] < 6
    near = make_ppo(epochs=6, early_stop_kl=100.0)
    assert run_update(near).metrics["val/steps"] == 6


@pytest.mark.parametrize("value", ["separate", "shared"])
def test_while_warming_up_only_the_values_move(make_ppo: Build, value: str) -> None:
    ppo = make_ppo(value=value, episodes=24, value_warmup_updates=1)
    before = {k: v.clone() for k, v in ppo.policy.model.state_dict().items()}
    first = run_update(ppo).metrics
    assert all(torch.equal(v, before[k]) for k, v in ppo.policy.model.state_dict().items())
    assert first["loss/value_avg"] > 0
    second = run_update(ppo).metrics
    assert second["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert any(not torch.equal(v, before[k]) for k, v in ppo.policy.model.state_dict().items())


def test_the_pretraining_loss_keeps_the_likelihood_of_its_rows(make_ppo: Build) -> None:
    rows = [[40 + (i + j) % 9 for j in range(12)] for i in range(9)]
    ppo = make_ppo(
        episodes=20 * 8, pretraining=rows, ptx_coefficient=5.0, micro_batch_size=3, end_rule="none"
    )
    losses: list[float] = []
    while len(losses) < 20 and (len(losses) < 2 or losses[-1] >= 0.6 * losses[0]):
        metrics = run_update(ppo).metrics
        losses.append(metrics["loss/pretraining_avg"])
        assert metrics["gradient_norm/pretraining_to_ppo"] > 0
    assert losses[0] == pytest.approx(math.log(320), rel=0.1)
    assert losses[-1] < 0.6 * losses[0]


def test_the_pretraining_gradient_is_added_to_that_of_ppo(
    make_ppo: Build, experience_of: Build
) -> None:
    rows = [[40, 41, 42, 43], [50, 51]]
    found = []
    for measure in (True, False):
        ppo = make_ppo(pretraining=rows, ptx_coefficient=2.0, ptx_rows_per_episode=0.25)
        run, done = ppo.optimization, Steps(norm_ratio=None if measure else 1.0)
        run._minibatch_gradient(experience_of(ppo), list(range(8)), warming=False)
        alone = gradients(run.policy)
        run._add_pretraining(done, 8, ppo.pad_id, 0)
        both = gradients(run.policy)
        found.append((both, done))
        model = ppo.policy.model
        ppo.policy.zero_grad()
        # token mean over both rows: 3 + 1 predicted tokens
        loss = sum(
            torch.nn.functional.cross_entropy(
                model(torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="sum"
            )
            for row in rows
        )
        (2.0 * loss / 4).backward()
        own = gradients(run.policy)
        assert torch.allclose(both, alone + own, atol=1e-6)
        if measure:
            expected = (own.norm() / alone.norm()).item()
            assert done.norm_ratio == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(found[0][0], found[1][0], atol=1e-7)


def test_the_kl_coefficient_adapts(make_ppo: Build) -> None:
    ppo = make_ppo(adaptive_kl={"target": 1.0, "horizon": 80})
    run_update(ppo)
    # KL 0 at the start: 20 % down, times 8 episodes of 80
    assert ppo.kl_coefficient == pytest.approx(0.05 * (1 - 0.2 * 8 / 80))


def test_the_average_follows_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 1.0)
    average = Average(module, decay=0.9)
    torch.nn.init.constant_(module.weight, 2.0)
    average.update(module)
    average.update(module)
    average.copy_to(module)
    assert module.weight.item() == pytest.approx(2 - 0.81)


def test_the_learning_rate_falls_to_zero_after_its_rise() -> None:
    hyper = Hyperparameters(episodes=40, batch_size=10)
    assert [rate_share(u, hyper=hyper) for u in range(4)] == [1.0, 0.75, 0.5, 0.25]
    hyper = Hyperparameters(episodes=60, batch_size=10, warmup_updates=2)
    shares = [rate_share(u, hyper=hyper) for u in range(6)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])
    constant = Hyperparameters(episodes=40, batch_size=10, schedule="constant")
    assert rate_share(3, hyper=constant) == 1.0


def test_running_moments_by_hand() -> None:
    from pipeline.rl.maths.advantages import moments

    running = RunningMoments()
    for part in (torch.tensor([1.0, 2.0]), torch.tensor([3.0])):
        running.add(moments(part, torch.ones_like(part, dtype=torch.bool)))
    # mean 2, variance 1
    assert running.normalized(torch.tensor([4.0])).item() == pytest.approx(2.0)
    again = RunningMoments()
    again.restore(running.state())
    assert again == running


def test_gradient_checkpointing_changes_no_gradient(make_ppo: Build, experience_of: Build) -> None:
    found = []
    for setting in (False, True):
        ppo = make_ppo(gradient_checkpointing=setting)
        assert ppo.policy.model.is_activation_checkpointing == setting
        assert ppo.policy.model.model.layers[0].training == setting
        run = ppo.optimization
        run._minibatch_gradient(experience_of(ppo), list(range(8)), warming=False)
        found.append(torch.cat([gradients(run.policy), gradients(run.value)]))
    assert torch.allclose(found[0], found[1], atol=1e-7)


def test_a_process_samples_its_share_of_the_same_episodes(make_ppo: Build) -> None:
    ppo = make_ppo()

    class Half:
        num_processes = 2

        def __init__(self, rank: int) -> None:
            self.process_index = rank

    whole = _roll_out(ppo)
    shares = []
    for rank in range(2):
        ppo.world = World(Half(rank), ppo.world.seed)
        shares += _roll_out(ppo).samples
    assert [s.token_ids for s in shares] == [s.token_ids for s in whole.samples]


def test_an_end_token_counts_from_its_position_on(make_ppo: Build) -> None:
    # Every token ends a response, but none before the fourth.
    ppo = make_ppo(max_new_tokens=6, end_after=3)
    ppo.later_end_ids = range(7, 320)
    episodes = _roll_out(ppo)
    untouched = [s for s in episodes.samples if len(s.token_ids) < 4]
    assert all(len(s.token_ids) <= 4 for s in episodes.samples)
    assert all(s.ended for s in episodes.samples)
    assert all(s.token_ids[-1] < 7 for s in untouched)
    assert any(len(s.token_ids) == 4 for s in episodes.samples)
    assert all(len(s.token_ids) == len(s.logprobs) for s in episodes.samples)
    assert run_update(ppo).metrics["objective/ended_share"] == 1.0


def test_advantages_are_whitened_over_each_minibatch(make_ppo: Build, experience_of: Build) -> None:
    ppo = make_ppo(minibatches=2, whiten_advantages="minibatch")
    found = experience_of(ppo)
    rows = [5, 1, 6, 2]
    whitened = ppo.optimization._whitened(found, rows)
    mask_BT = found.tokens.mask_BT[rows]
    part = whitened.advantages_BT[rows][mask_BT]
    assert part.mean().item() == pytest.approx(0, abs=1e-5)
    assert part.std().item() == pytest.approx(1, abs=1e-3)
    raw = found.advantages_BT[rows][mask_BT]
    assert torch.allclose(part, (raw - raw.mean()) / raw.std(), atol=1e-4)
    assert run_update(ppo).metrics["val/ratio_var"] > 0


def test_figures_of_responses_by_hand() -> None:
    from types import SimpleNamespace

    from pipeline.rl.ppo.metrics import repeated_share, response_metrics

    assert repeated_share([1, 2, 3]) == 0.0
    assert repeated_share([1, 2, 1, 2, 1, 2]) == pytest.approx(1 / 3)  # 1212 2121 1212
    ids = [[1, 2], [1, 2], [3], [1, 1, 1, 1, 1]]
    episodes: Any = SimpleNamespace(samples=[Sample(i, True, []) for i in ids])
    episodes = type("Four", (), {"samples": episodes.samples, "__len__": lambda _: 4})()
    scores: Any = SimpleNamespace(raw_B=torch.tensor([2.0, 2.0, 1.0, 5.0]))
    one: Any = SimpleNamespace(size=1, sum=lambda values: values)
    found = response_metrics(episodes, scores, world=one)
    assert found["objective/distinct_share"] == 0.75
    assert found["objective/repeated_share"] == pytest.approx(0.5 / 4)  # 1111 twice, in the last
    assert found["objective/score_length_correlation"] == pytest.approx(1.0)
    assert found["objective/scores_raw_std"] == pytest.approx(1.5)
    scores.raw_B = torch.ones(4)
    assert response_metrics(episodes, scores, world=one)["objective/score_length_correlation"] == 0
