"""The optimiser steps of one update: epochs over minibatches of its episodes.

    minibatch      episodes of all processes, one optimiser step
    micro-batch    as many of a process's share of them as one backward pass holds

Every process holds the tokens and figures of all episodes (little beside a model), so that a
minibatch is the same whatever the number of processes, which share it evenly. Hidden states that
values are read off are not little: each process reads those of its own episodes. All losses are
sums over the count of the global minibatch, so that gradients of parts add up.

Shapes: B episodes of all processes, M episodes of a micro-batch, T response tokens, L tokens of
prompt and response, H hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from data.errors import TrainingError
from pipeline.rl.health.invariants import check_first_step
from pipeline.rl.learner import Average, Learner, rate_share
from pipeline.rl.maths.advantages import whitened
from pipeline.rl.maths.losses import ValueLoss, policy_loss, value_loss
from pipeline.rl.maths.masking import masked_mean
from pipeline.rl.ppo.experience import Experience, MicroBatch, everyones, global_moments
from pipeline.rl.pretraining_mix import PretrainingRows, add_pretraining_gradient
from pipeline.rl.processes import World
from pipeline.rl.settings import Hyperparameters


class Step(NamedTuple):
    """Figures of one optimiser step: means over the tokens of the global minibatch."""

    policy_loss: float
    value_loss: float
    approximate_kl: float
    clip_share: float
    value_clip_share: float
    ratio: float


@dataclass
class Steps:
    """The steps of one update.

    Attributes:
        steps: each of them.
        norms: gradient norms by module, each of them.
        pretraining: losses of the pretraining rows.
        norm_ratio: of the pretraining gradient to PPO's, at the first step.
    """

    steps: list[Step] = field(default_factory=list)
    norms: dict[str, list[float]] = field(default_factory=dict)
    pretraining: list[float] = field(default_factory=list)
    norm_ratio: float | None = None


@dataclass
class Optimization:
    """What the optimiser steps of a run work with.

    Attributes:
        policy: the policy, with a value head if `value` is None.
        value: the separate value model, or the head that reads the reward model's hidden states.
        average: moving average of the policy.
        pretraining: rows of PPO-ptx.
        hyper: the settings.
        world: the processes.
    """

    policy: Learner
    value: Learner | None
    average: Average | None
    pretraining: PretrainingRows | None
    hyper: Hyperparameters
    world: World

    def run(self, experience: Experience, *, update: int, check: bool) -> Steps:
        """Take the steps of an update.

        Args:
            experience: what to learn from, of this process's episodes.
            update: number of the update.
            check: check the invariants at the first step.

        Raises:
            TrainingError: a loss or gradient is not finite, or an invariant does not hold.
        """
        # Of all processes' episodes [B, T], so that each draws the same minibatches of them.
        steps, experience = Steps(), everyones(experience, self.world)
        for epoch in range(self.hyper.epochs):
            for minibatch in self._minibatches(experience, update, epoch):
                rows = self._share(experience, minibatch)
                # Gradients of the losses, of PPO-ptx's too; then norms, clipping, Adam, average.
                step = self._minibatch_gradient(
                    experience, rows, warming=self._warming(update), minibatch=minibatch
                )
                if check and not steps.steps:
                    check_first_step(
                        ratio=step.ratio,
                        approximate_kl=step.approximate_kl,
                        value_loss=step.value_loss,
                        bf16=self.world.bf16 or self._from_a_server,
                    )
                steps.steps.append(step)
                for name in ("policy_loss", "value_loss"):
                    _require_finite(name, getattr(step, name), update)
                self._add_pretraining(steps, len(minibatch), experience.tokens.pad_id, update)
                self._take_step(steps, update)
                # Of the policy before this step, and a figure of all processes: they stop together.
                # The step that shows it is taken, those after it are not.
                limit = self.hyper.early_stop_kl
                if limit is not None and step.approximate_kl > limit:
                    return steps
        return steps

    @property
    def _from_a_server(self) -> bool:
        """Whether the old log-probabilities may be those of another program."""
        return self.hyper.reuse_logprobs and self.hyper.rollout.engine != "own"

    def _warming(self, update: int) -> bool:
        """Tell whether an update trains the values alone."""
        return update < self.hyper.value_warmup_updates

    def _minibatches(self, experience: Experience, update: int, epoch: int) -> list[list[int]]:
        """Cut the episodes of all processes into minibatches, in an order of the epoch's own."""
        count = len(experience.tokens.ids)
        generator = self.world.generator("minibatches", update, epoch, 0)
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        size = count // self.hyper.minibatches  # without a rest: the settings see to it
        return [order[start : start + size] for start in range(0, count, size)]

    def _share(self, experience: Experience, minibatch: list[int]) -> list[int]:
        """Return this process's episodes of a minibatch, of like lengths on all processes."""
        ids = experience.tokens.ids
        # Dealt out like cards from the longest down, so that none waits long for another's pass.
        return self.world.share(sorted(minibatch, key=lambda row: (-len(ids[row]), row)))

    def _minibatch_gradient(
        self,
        experience: Experience,
        rows: list[int],
        *,
        warming: bool,
        minibatch: list[int] | None = None,
    ) -> Step:
        """Accumulate the gradients of a minibatch; micro-batches do not change them.

        `rows` are this process's share of the minibatch, which is of these alone when not given.
        """
        tokens = experience.tokens
        # The global counts by which all losses divide: response tokens, and states with a value.
        masks = (tokens.mask_BT[rows], tokens.value_mask_BT[rows])
        counts = self.world.sum(torch.stack([mask.sum().float() for mask in masks]))
        if self.hyper.whiten_advantages == "minibatch":
            experience = self._whitened(experience, rows)
        limit = self.hyper.update_limit
        micro_batches = list(tokens.micro_batches(rows, limit=limit, world=self.world))
        figures = torch.zeros(len(Step._fields), device=self.world.device, dtype=torch.float64)
        modules = [self.policy.module]
        if self.value is not None and experience.states_BTH is None:
            modules.append(self.value.module)
        for place, micro in enumerate(micro_batches):
            # Processes add their gradients up once, in the last backward pass.
            last = place == len(micro_batches) - 1
            with self.world.accelerator.gradient_sync(*modules, when=last):
                figures += self._micro_batch_gradient(experience, micro, counts, warming=warming)
        if experience.states_BTH is not None:
            figures += self._value_head_gradient(experience, minibatch or rows, counts[1])
        return Step(*self.world.sum(figures).tolist())

    def _whitened(self, experience: Experience, rows: list[int]) -> Experience:
        """Whiten the advantages over a minibatch of all processes."""
        advantages_BT, mask_BT = experience.advantages_BT, experience.tokens.mask_BT
        of = global_moments(advantages_BT[rows], mask_BT[rows], self.world)
        return replace(experience, advantages_BT=whitened(advantages_BT, mask_BT, of=of))

    def _micro_batch_gradient(
        self, experience: Experience, micro: MicroBatch, counts: Tensor, *, warming: bool
    ) -> Tensor:
        """Add the gradients of one micro-batch; return its share of the step's figures."""
        hyper, mask_MT = self.hyper, micro.mask_MT
        count, value_count = counts

        def part(whole_BT: Tensor) -> Tensor:  # [B, T] -> [M, T], T of the longest response here
            return whole_BT[micro.rows_M, : mask_MT.shape[1]]

        # 1. log pi(y_t), with a gradient unless the values alone are warmed up.
        skip_policy = warming and self.value is not None
        with torch.set_grad_enabled(not skip_policy):
            output = self.policy.module(
                micro.ids_ML, micro.starts_M, mask_MT, hyper.temperature,
                hyper.entropy_coefficient > 0,
            )  # fmt: skip
        # 2. max(-A * ratio, -A * clip(ratio)), ratio = exp(log pi - log pi_old).
        surrogate = policy_loss(
            logprobs_BT=output.logprobs_BT,
            old_logprobs_BT=part(experience.logprobs_BT),
            advantages_BT=part(experience.advantages_BT),
            mask_BT=mask_MT,
            clip=hyper.clip,
            count=count,
        )
        loss = torch.zeros((), device=self.world.device)
        if not skip_policy:
            entropy = masked_mean(output.entropies_BT, mask_MT, count=count)
            bonus = hyper.entropy_coefficient * entropy
            # A shared trunk keeps a (zero) gradient for every parameter while it warms up.
            loss = (0.0 if warming else 1.0) * (surrogate.loss - bonus)
        figures = surrogate._asdict()
        figures["policy_loss"] = figures.pop("loss")
        # 3. c * value loss; where values are read off states that nothing trains, later.
        if experience.states_BTH is None:
            values_MT = output.values_BT
            if self.value is not None:
                values_MT = self.value.module(micro.ids_ML, micro.starts_M, micro.value_mask_MT)
            regression = value_loss(
                values_BT=values_MT,
                old_values_BT=part(experience.values_BT),
                returns_BT=part(experience.returns_BT),
                mask_BT=micro.value_mask_MT,
                clip=hyper.value_clip,
                count=value_count,
            )
            loss = hyper.value_coefficient * regression.loss + loss
            figures |= _value_figures(regression)
        # 4. The gradients.
        if loss.requires_grad:
            self.world.backward(loss)
        return _as_step(figures)

    def _value_head_gradient(
        self, experience: Experience, minibatch: list[int], count: Tensor
    ) -> Tensor:
        """Add the gradients of a value head that reads states which nothing here trains.

        Of this process's own episodes of the minibatch, whose states it has; it may have none.
        Returns their share of the step's figures; `count` are the values of the global minibatch.
        """
        assert self.value is not None and experience.states_BTH is not None
        own, tokens, width = experience.own, experience.tokens, experience.states_BTH.shape[1]
        rows = [row for row in minibatch if row in own]  # M of them, a micro-batch at a time
        longest = max((len(tokens.ids[row]) for row in rows), default=1)
        size = self.hyper.update_limit.rows_of(longest)
        figures = torch.zeros(len(Step._fields), device=self.world.device, dtype=torch.float64)
        # At least one pass, of no rows where it has none: the others wait for its gradients' sum.
        for start in range(0, max(1, len(rows)), size):
            some = rows[start : start + size]
            mask_MT = tokens.value_mask_BT[some, :width]
            states_MTH = experience.states_BTH[[row - own.start for row in some]]
            last = start + size >= len(rows)
            with self.world.accelerator.gradient_sync(self.value.module, when=last):
                regression = value_loss(
                    values_BT=self.value.module(states_MTH, mask_MT),
                    old_values_BT=experience.values_BT[some, :width],
                    returns_BT=experience.returns_BT[some, :width],
                    mask_BT=mask_MT,
                    clip=self.hyper.value_clip,
                    count=count,
                )
                self.world.backward(self.hyper.value_coefficient * regression.loss)
            figures += _as_step(_value_figures(regression))
        return figures

    def _add_pretraining(self, steps: Steps, episodes: int, pad_id: int, update: int) -> None:
        """Add the gradient of PPO-ptx, of new pretraining rows for so many episodes."""
        if self.pretraining is None or self._warming(update):
            return
        step = add_pretraining_gradient(
            self.policy,
            self.pretraining,
            rows=max(1, round(self.hyper.ptx_rows_per_episode * episodes)),
            coefficient=self.hyper.ptx_coefficient,
            limit=self.hyper.update_limit,
            pad_id=pad_id,
            measure=steps.norm_ratio is None,
        )
        steps.pretraining.append(step.loss)
        if step.norm_ratio is not None:
            steps.norm_ratio = step.norm_ratio

    def _take_step(self, steps: Steps, update: int) -> None:
        """Step the optimisers, and the average."""
        share = rate_share(update, hyper=self.hyper)
        learners: dict[str, Learner] = {} if self.value is None else {"value": self.value}
        if not self._warming(update):
            learners["policy"] = self.policy
        elif self.value is None:
            learners["policy"] = self.policy
            self._keep_head_gradients()
        # All norms come before any step: one gradient that is not finite leaves all weights alone.
        norms = {name: learner.gradient_norm() for name, learner in learners.items()}
        for name, norm in norms.items():
            _require_finite(f"the gradient norm of the {name}", norm, update)
        for name, learner in learners.items():
            learner.step(norm=norms[name], share=share, max_norm=self.hyper.max_gradient_norm)
            steps.norms.setdefault(name, []).append(norms[name])
        if self.average is not None and not self._warming(update):
            self.average.update(self.world.unwrapped(self.policy.module))

    def _keep_head_gradients(self) -> None:
        """While a shared trunk warms up only the value head moves."""
        for name, parameter in self.world.unwrapped(self.policy.module).named_parameters():
            if not name.startswith("value_head"):
                parameter.grad = None


def _value_figures(regression: ValueLoss) -> dict[str, Tensor]:
    return {"value_loss": regression.loss, "value_clip_share": regression.clip_share}


def _as_step(figures: dict[str, Tensor]) -> Tensor:
    """Return figures in the order of the fields of `Step`, 0 where there is none."""
    zero = torch.zeros_like(next(iter(figures.values())))
    return torch.stack([figures.get(name, zero).detach().double() for name in Step._fields])


def _require_finite(name: str, figure: float, update: int) -> None:
    """Refuse a figure of all processes that is NaN or infinite, before a step.

    Raises:
        TrainingError: it is; the weights are as they were.
    """
    if not math.isfinite(figure):
        raise TrainingError(
            f"{name} became {figure} at update {update + 1}, nothing was trained on it; lower "
            "learning_rate or set bf16: false, the last good resume state is kept"
        )
