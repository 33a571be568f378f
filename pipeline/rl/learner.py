"""What is trained: modules with their optimisers, the learning rate, the policy's average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.rl.processes import World
from pipeline.rl.settings import Hyperparameters
from pipeline.training.accelerator import (
    filled,
    full_tensor,
    gathered,
    gathered_optimizer_state,
    gathered_state,
    hollow_copy,
    sharded_like,
)
from pipeline.training.schedule import schedule_factor


@dataclass
class Learner:
    """A module, as accelerate wrapped it, and its optimiser.

    Attributes:
        module: `Policy` or `ValueModel`.
        optimizer: Adam over all that it trains.
        learning_rate: the highest of the run.
        world: the processes.
        hollow: where the weights are sharded, the module without them, see `full_module`.
    """

    module: nn.Module
    optimizer: Any
    learning_rate: float
    world: World
    hollow: nn.Module | None = None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        learning_rate: float,
        hyper: Hyperparameters,
        world: World,
        head_rate: float | None = None,
    ) -> Learner:
        """Move a module to its device, give it an optimiser, and wrap both for many processes.

        Args:
            module: what is trained, where it wants gradients.
            learning_rate: the highest of the run.
            hyper: the settings.
            world: the processes.
            head_rate: learning rate of the value head on an adapter; None is that of all.
        """
        module.to(world.device)
        optimizer = torch.optim.Adam(
            _groups(module, head_rate),
            lr=learning_rate,
            betas=hyper.adam_betas,
            eps=hyper.adam_epsilon,
            fused=True,
        )
        hollow = hollow_copy(module) if world.sharded else None
        wrapped, prepared = world.accelerator.prepare(module, optimizer)
        return cls(wrapped, prepared, learning_rate, world, hollow)

    @contextlib.contextmanager
    def full_module(self) -> Iterator[Any]:
        """Give the bare module with all its weights, to call without the other processes.

        Called on every process; where weights are sharded they are gathered and let go again.
        """
        if self.hollow is None:
            yield self.world.unwrapped(self.module)
            return
        with filled(self.hollow, self.module) as module:
            yield module

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def gradient_norm(self) -> float:
        """Return the norm of the gradient that the next step takes, the same on all processes."""
        return gradient_norm(self.parameters())

    def step(self, *, norm: float, share: float, max_norm: float | None) -> None:
        """Take a step with a share of the learning rate.

        Args:
            norm: of the gradient, which is finite.
            share: of the learning rate.
            max_norm: a gradient with a longer norm is scaled down to it; None scales none.
        """
        if max_norm is not None:
            # In float64, so that the factor is rounded once, to the gradient's type.
            total_norm = torch.tensor(norm, dtype=torch.float64)
            nn.utils.clip_grads_with_norm_(self.parameters(), max_norm, total_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("rate", self.learning_rate) * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return what is trained and the optimiser, for process 0 to save; called on every one."""
        module = self.world.unwrapped(self.module)
        frozen = _frozen(module)
        return {
            "module": {k: v for k, v in gathered_state(module).items() if k not in frozen},
            "optimizer": gathered_optimizer_state(self.optimizer),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        module = self.world.unwrapped(self.module)
        # Frozen weights come from their checkpoint, so that a state holds what is trained alone.
        own = module.state_dict()
        frozen = {name: own[name] for name in _frozen(module)}
        module.load_state_dict({**frozen, **state["module"]})
        self.optimizer.load_state_dict(state["optimizer"])


class Average:
    """An exponential moving average of a module's trained parameters."""

    # torch.optim.swa_utils.AveragedModel copies the module, which FSDP2 refuses and which takes a
    # frozen trunk's memory again, and it begins with the weights after the first step, not before.

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.shadows = {name: p.detach().clone() for name, p in _trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the parameters: average = decay * average + (1 - decay) * parameter."""
        for name, parameter in _trained(module):
            self.shadows[name].lerp_(parameter.detach(), 1.0 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite a module's parameters by their averages."""
        for name, parameter in _trained(module):
            parameter.copy_(self.shadows[name])

    def state(self) -> dict[str, Tensor]:
        """Return the averages, for process 0 to save; called on every process."""
        return {name: gathered(shadow) for name, shadow in self.shadows.items()}

    def restore(self, shadows: Mapping[str, Tensor]) -> None:
        """Take up a state."""
        for name, shadow in shadows.items():
            self.shadows[name].copy_(sharded_like(shadow, self.shadows[name]))


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _frozen(module: nn.Module) -> set[str]:
    """Return the names of the parameters that are not trained, tied ones under each name."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, p in named if not p.requires_grad}


def _groups(module: nn.Module, head_rate: float | None) -> list[dict[str, Any]]:
    """Return the optimiser's groups: the value head apart if it has a rate of its own."""
    if head_rate is None:
        return [{"params": [p for _, p in _trained(module)]}]
    body = [p for name, p in _trained(module) if not name.startswith("value_head")]
    head = [p for name, p in _trained(module) if name.startswith("value_head")]
    return [{"params": body}, {"params": head, "rate": head_rate}]


def rate_share(update: int, *, hyper: Hyperparameters) -> float:
    """Return the share of the learning rate at an update, from 0 on.

    Linear to 0 at the end of the run, the first update at the whole rate (N+), after a rise over
    `warmup_updates`. It is 0 one update after the last, which would teach nothing at 0.
    """
    return schedule_factor(
        update,
        total=hyper.updates + 1,
        warmup=hyper.warmup_updates,
        schedule=hyper.schedule,
        final_share=0.0,
    )


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the Euclidean norm of all gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    return float(full_tensor(torch.nn.utils.get_total_norm(gradients)))
