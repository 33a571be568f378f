"""Proximal policy optimisation of a language model against a reward, from a reference.

One update, numbered in `run_update` as here:

1. Roll out: sample a response y to each prompt x of the batch from the policy pi.
2. Score: R(x, y) from reward models and rules, weighted; without an end min(R, -1).
3. Forward: log pi(y_t), log pi_ref(y_t) and the values V_t, without gradients.
4. Shape: r_t = -b * (log pi - log pi_ref) at each token, plus R at the last one (Ouyang et al.
   2022, equation 2), and estimate advantages A_t with lambda 0.95, whitened (Schulman et al.
   2016, equation 16).
5. Optimise: epochs over minibatches of max(-A * ratio, -A * clip(ratio)) + c * value loss
   (Schulman et al. 2017, equation 9), + PPO-ptx's pretraining loss if asked for.
6. Adapt: the KL coefficient b, if it is adaptive.

Departures from InstructGPT: the KL is an estimate at each token in the reward as in its
predecessors, value loss clipped, advantages whitened; a separate learning rate for the value
model is optional; the pretraining loss is a mean over tokens, so that its 27.8 does not carry
over; prompts come in permutations, so an episode's prompt may come again in a later pass.
Departures from N+ (Huang et al. 2024): min(score, -1) for responses without an end instead of -1
(`end_rule: replace` gives theirs).
Departures from TRL 1.12. `recipes/base/trl.yaml` takes back these, so that losses, gradients and
weights after an update agree on the same tokens (tests/pipeline/rl/ppo/test_trl.py):
- that same rule (it subtracts a penalty); Adam's epsilon (1e-8); 1e-7 added to the temperature;
- the score stands at the last token and not one past it where there is room; there TRL also has a
  value, which goes into the advantages, whitened rewards and the value loss;
- losses are means over the tokens of the whole minibatch, TRL's means of the means of its
  micro-batches and processes, which is the same where there is one of each.
These stay:
- each minibatch is an optimiser step; TRL takes one an epoch whatever its `num_mini_batches`, and
  in the last batch of a pass over the prompts one a micro-batch, at a gradient divided by their
  number; it runs ceil(episodes / batch) updates, this floor;
- there is room past the last token of each response that is shorter than `max_new_tokens` (N+), in
  TRL of each that is shorter than the longest of its batch on its process;
- whitening is over the batch of all processes, TRL's over each one's own;
- the update's own pass gives the old log-probabilities, so that the first ratio is exactly 1;
- a padding token that was sampled counts as any other, in TRL it is padding and ends the response;
- reward models read text through their own tokenizer and template, not the policy's token ids; the
  value model's head has a bias, which the sequence classifiers used with TRL have not;
- figures a token are means over tokens, in TRL over padding too (`val/ratio`,
  `policy/approxkl_avg`, `policy/entropy_avg`); `objective/kl` is k1;
- the KL in the reward is k1: TRL's `kl_estimator: k3` does not give its gradient there, and is
  refused;
- and everything resumes.

All random numbers are drawn from generators made anew from the seed and the update's number, so
that a resumed run goes on bit for bit with no generator's state to keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import RewardError
from pipeline.contract.resume import ResumeStore, load_state, restore_rng, rng_state, save_state
from pipeline.rl.health.best_policy import AlarmMonitor
from pipeline.rl.health.doctor import ENTROPY_SHARE
from pipeline.rl.health.invariants import check_reference, check_rollout
from pipeline.rl.learner import rate_share
from pipeline.rl.maths.kl import adapted_coefficient
from pipeline.rl.maths.masking import masked_sum
from pipeline.rl.policy import Policy
from pipeline.rl.ppo.experience import (
    Experience,
    PolicyScores,
    Tokens,
    make_experience,
    sampled_logprobs,
    score_tokens,
)
from pipeline.rl.ppo.metrics import (
    Clock,
    call_metrics,
    objective_metrics,
    response_metrics,
    sample_rows,
    step_metrics,
)
from pipeline.rl.ppo.optimize import Optimization
from pipeline.rl.ppo.shared_forward import SharedForward, SharedOutputs
from pipeline.rl.processes import World
from pipeline.rl.prompts import Order, PreparedPrompt
from pipeline.rl.rewards import RewardSum, Scores
from pipeline.rl.rollout.rollout import Episodes, RolloutEngine, roll_out
from pipeline.rl.settings import Hyperparameters

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

STATE = "state.pt"


@dataclass
class Ppo:
    """A run of PPO.

    Attributes:
        hyper: its settings.
        world: its processes.
        tokenizer: the policy's.
        prompts: what is answered.
        engine: samples responses.
        rewards: scores them.
        optimization: policy and value model with their optimisers.
        reference: where the policy shall not stray from.
        reference_is_start: whether the policy starts as the reference.
        pad_id: the padding token.
        later_end_ids: tokens that end a response from `end_after` on; the engine stops at none.
        reader: gives a score and the hidden states that values are read off, if they are.
        update: number of finished updates.
        kl_coefficient: weight of the KL penalty now.
        metrics: of the last update.
        watch: the doctor's history.
        evaluation: held-out figures of the policy after `evaluated` updates; none before there are.
        evaluated: finished updates when it was evaluated last.
        best_gold: the most that the second judge of evaluations gave a policy so far.
    """

    hyper: Hyperparameters
    world: World
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[PreparedPrompt]
    engine: RolloutEngine
    rewards: RewardSum
    optimization: Optimization
    reference: Policy
    reference_is_start: bool
    pad_id: int
    later_end_ids: Sequence[int] = ()
    reader: SharedForward | None = None
    update: int = 0
    kl_coefficient: float = field(init=False)
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    evaluated: int | None = None
    best_gold: float = -math.inf
    _checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.kl_coefficient = self.hyper.kl_coefficient
        self.watch = AlarmMonitor(self.hyper, value_warmup=self.hyper.value_warmup_updates)
        self.order = Order(len(self.prompts), seed=self.world.seed, purpose="prompts")

    @property
    def policy(self) -> Policy:
        """The policy, without what data parallelism wrapped it in."""
        policy: Policy = self.world.unwrapped(self.optimization.policy.module)
        return policy


@dataclass(frozen=True)
class UpdateResult:
    """What an update leaves for the logs; samples where they are due."""

    metrics: dict[str, float]
    samples: list[Mapping[str, object]]


def run_update(
    ppo: Ppo, *, judge: Callable[[Mapping[str, float]], None] | None = None
) -> UpdateResult:
    """Run one update: the algorithm.

    Args:
        ppo: the run.
        judge: called before the optimiser steps, with what the episodes tell of the policy.
    """
    clock = Clock()
    # 1. Roll out: y ~ pi(. | x) for this process's share of the batch, B episodes.
    episodes = _roll_out(ppo)
    clock.lap("time/rollout")
    # 2. Score: R(x, y) [B], and the hidden states of that pass if values are read off them.
    scores, shared = _score(ppo, episodes)
    clock.lap("time/score")
    # 3. Forward: log pi, log pi_ref and V of each response token [B, T].
    tokens, scored = _logprobs_and_values(ppo, episodes, shared)
    clock.lap("time/forward")
    # 4. Shape: rewards, whitened advantages, returns [B, T].
    experience = make_experience(
        tokens,
        scored,
        scores_B=scores.final_B,
        kl_coefficient=ppo.kl_coefficient,
        hyper=ppo.hyper,
        world=ppo.world,
    )
    _check(ppo, episodes, experience, scored.difference)
    metrics = objective_metrics(
        episodes, scores, experience, kl_coefficient=ppo.kl_coefficient, world=ppo.world
    ) | response_metrics(episodes, scores, world=ppo.world)
    # ln V nats are the entropy of a token drawn evenly, so that 1 is a policy that knows nothing.
    metrics[ENTROPY_SHARE] = metrics["policy/entropy_avg"] / math.log(len(ppo.tokenizer))
    if ppo.hyper.tools is not None:
        metrics |= call_metrics(episodes, world=ppo.world)
    if judge is not None:  # these episodes are of the policy before the steps below
        judge(metrics)
    clock.lap("time/judge")
    # 5. Optimise: epochs over minibatches of all processes' episodes.
    steps = ppo.optimization.run(experience, update=ppo.update, check=not ppo._checked)
    ppo._checked = True
    ppo.engine.synchronize()  # the next batch is sampled by the weights of now
    clock.lap("time/optimize")
    # 6. Adapt: the KL coefficient of the next update, by the KL that this one's episodes had.
    _adapt(ppo, metrics["objective/kl"])
    metrics |= step_metrics(steps) | {"val/rollout_difference": scored.difference}
    if shared is not None:
        metrics["val/scored_apart"] = shared.apart
    return _result(ppo, episodes, scores, experience, metrics | clock.laps)


def _roll_out(ppo: Ppo) -> Episodes:
    return roll_out(
        ppo.engine,
        prompts=ppo.prompts,
        order=ppo.order,
        first=ppo.update * ppo.hyper.batch_size,
        episodes=ppo.hyper.batch_size,
        update=ppo.update,
        max_new_tokens=ppo.hyper.max_new_tokens,
        tokenizer=ppo.tokenizer,
        world=ppo.world,
        end_ids=ppo.later_end_ids,
        end_after=ppo.hyper.end_after,
    )


def _tokens(ppo: Ppo, episodes: Episodes) -> Tokens:
    return Tokens.of(
        episodes,
        pad_id=ppo.pad_id,
        device=ppo.world.device,
        max_new_tokens=ppo.hyper.max_new_tokens,
        score_position=ppo.hyper.score_position,
    )


def _score(ppo: Ppo, episodes: Episodes) -> tuple[Scores, SharedOutputs | None]:
    """Return the scores, and the pass that gave one of them where values are read off it too."""
    reader = ppo.reader
    if reader is None:
        return ppo.rewards.score(episodes, hyper=ppo.hyper, world=ppo.world), None
    # One process may fail to encode a text: then all do, else the others wait for it for ever.
    limit = ppo.hyper.score_limit
    shared = ppo.world.everywhere(
        lambda: reader.read(_tokens(ppo, episodes), episodes, limit=limit, world=ppo.world),
        failure=RewardError,
    )
    known = {reader.term: shared.scores}
    scores = ppo.rewards.score(episodes, hyper=ppo.hyper, world=ppo.world, known=known)
    return scores, shared


def _logprobs_and_values(
    ppo: Ppo, episodes: Episodes, shared: SharedOutputs | None = None
) -> tuple[Tokens, PolicyScores]:
    tokens = _tokens(ppo, episodes) if shared is None else shared.tokens
    value = ppo.optimization.value
    scored = score_tokens(
        tokens,
        sampled_BT=sampled_logprobs(episodes, tokens.mask_BT),
        policy=ppo.policy,
        reference=ppo.reference,
        value=None if value is None else ppo.world.unwrapped(value.module),
        hyper=ppo.hyper,
        world=ppo.world,
        states_BTH=None if shared is None else shared.states_BTH,
    )
    return tokens, scored


def _check(ppo: Ppo, episodes: Episodes, experience: Experience, difference: float) -> None:
    """Check the invariants before the first step."""
    served = ppo.hyper.rollout.engine != "own"
    if served:  # at each update: another run may write its weights into a server any time
        most = ppo.hyper.rollout.max_difference
        check_rollout(difference, bf16=ppo.world.bf16, most=most)
    if ppo._checked:
        return
    mask_BT = experience.tokens.mask_BT
    if not served:
        check_rollout(difference, bf16=ppo.world.bf16)
    # Before the first step of all pi is pi_ref, so that |log pi - log pi_ref| is rounding alone.
    if ppo.update == 0 and ppo.reference_is_start:
        count = ppo.world.sum(mask_BT.sum().float())
        strayed = masked_sum(experience.log_ratio_BT.abs(), mask_BT)
        rounded = ppo.world.bf16 or (served and ppo.hyper.reuse_logprobs)
        check_reference(float(ppo.world.sum(strayed) / count), bf16=rounded)


def _adapt(ppo: Ppo, kl: float) -> None:
    settings = ppo.hyper.adaptive_kl
    if settings is not None:
        ppo.kl_coefficient = adapted_coefficient(
            ppo.kl_coefficient,
            kl=kl,
            target=settings.target,
            horizon=settings.horizon,
            episodes=ppo.hyper.batch_size,
        )


def _result(
    ppo: Ppo,
    episodes: Episodes,
    scores: Scores,
    experience: Experience,
    metrics: dict[str, float],
) -> UpdateResult:
    """Count the update as finished and gather what is logged of it."""
    share = rate_share(ppo.update, hyper=ppo.hyper)
    seconds = sum(value for name, value in metrics.items() if name.startswith("time/"))
    ppo.update += 1
    metrics |= {
        "lr": ppo.optimization.policy.learning_rate * share,
        "episode": ppo.update * ppo.hyper.batch_size,
        "time/episodes_per_second": ppo.hyper.batch_size / max(seconds, 1e-9),
    }
    if not is_due(ppo, ppo.hyper.sample_every):
        return UpdateResult(metrics, [])
    rows = sample_rows(
        episodes,
        scores,
        experience,
        update=ppo.update,
        count=ppo.hyper.sample_count,
        tokenizer=ppo.tokenizer,
    )
    return UpdateResult(metrics, rows)


def is_due(ppo: Ppo, every: int) -> bool:
    """Tell whether something is due that comes every so many updates, and after the last."""
    return every > 0 and (ppo.update % every == 0 or ppo.update == ppo.hyper.updates)


def save(ppo: Ppo, states: ResumeStore) -> None:
    """Save everything that a resumed run needs."""
    states.save(ppo.update, lambda folder: write_state(ppo, folder))


def write_state(ppo: Ppo, folder: Path) -> None:
    """Write a state's files into a folder; called on every process."""
    rank = ppo.world.rank
    save_state(folder / f"rng-{rank}.pt", rng_state())
    state = _state(ppo)  # gathers sharded weights, so that all processes take part
    if rank == 0:
        save_state(folder / STATE, state)


def restore(ppo: Ppo, states: ResumeStore) -> bool:
    """Take up the newest complete resume state; tell whether there was one."""
    latest = states.latest()
    if latest is None:
        return False
    step, folder = latest
    load_ppo_state(ppo, folder, step)
    return True


def load_ppo_state(ppo: Ppo, folder: Path, step: int) -> None:
    """Take up the state in a folder, of so many finished updates.

    It may be of another number of processes: all random numbers of the algorithm follow from seed
    and update, and what is saved is gathered.
    """
    state = load_state(folder / STATE)
    run = ppo.optimization
    run.policy.restore(state["policy"])
    if run.value is not None:
        run.value.restore(state["value"])
    if run.average is not None:
        run.average.restore(state["average"])
    if run.pretraining is not None:
        run.pretraining.place = state["pretraining_place"]
    ppo.rewards.restore(state["scores"])
    ppo.kl_coefficient = state["kl_coefficient"]
    ppo.metrics = state["metrics"]
    ppo.watch.restore(state["doctor"])
    # States from before there were evaluations have none.
    ppo.evaluation, ppo.evaluated = state.get("evaluation", {}), state.get("evaluated")
    ppo.best_gold = state.get("best_gold", -math.inf)
    ppo.update = step
    # The global generators serve what libraries draw (dropout); as many are saved as processes ran.
    if state["processes"] == ppo.world.size:
        restore_rng(load_state(folder / f"rng-{ppo.world.rank}.pt"))
    ppo.engine.synchronize()  # it has the weights that the run was started with


def _state(ppo: Ppo) -> dict[str, Any]:
    run = ppo.optimization
    average: dict[str, torch.Tensor] = run.average.state() if run.average is not None else {}
    return {
        "processes": ppo.world.size,
        "policy": run.policy.state(),
        "value": run.value.state() if run.value is not None else {},
        "average": average,
        "pretraining_place": run.pretraining.place if run.pretraining is not None else 0,
        "scores": ppo.rewards.state(),
        "kl_coefficient": ppo.kl_coefficient,
        "metrics": ppo.metrics,
        "doctor": ppo.watch.state(),
        "evaluation": ppo.evaluation,
        "evaluated": ppo.evaluated,
        "best_gold": ppo.best_gold,
    }
