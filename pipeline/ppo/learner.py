"""What is trained: modules with their optimisers, the learning rate, the policy's average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.ppo.ranks import Ranks
from pipeline.ppo.settings import Hyperparameters
from pipeline.sharding import (
    cut,
    filled,
    hollow_copy,
    whole,
    whole_optimizer_state,
    whole_state,
)


@dataclass
class Learner:
    """A module, as accelerate wrapped it, and its optimiser.

    Attributes:
        module: `Policy` or `ValueModel`.
        optimizer: Adam over all that it trains.
        learning_rate: the highest of the run.
        ranks: the processes.
        hollow: where the weights are sharded, the module without them, see `whole`.
    """

    module: nn.Module
    optimizer: Any
    learning_rate: float
    ranks: Ranks
    hollow: nn.Module | None = None

    @classmethod
    def of(
        cls, module: nn.Module, *, learning_rate: float, hyper: Hyperparameters, ranks: Ranks
    ) -> Learner:
        """Move a module to its device, give it an optimiser, and wrap both for many processes."""
        module.to(ranks.device)
        optimizer = torch.optim.Adam(
            [p for p in module.parameters() if p.requires_grad],
            lr=learning_rate,
            betas=hyper.adam_betas,
            eps=hyper.adam_epsilon,
            fused=True,
        )
        hollow = hollow_copy(module) if getattr(ranks.accelerator, "sharded", False) else None
        wrapped, prepared = ranks.accelerator.prepare(module, optimizer)
        return cls(wrapped, prepared, learning_rate, ranks, hollow)

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        """Give the bare module with all its weights, to call without the other processes.

        Called on every process; where weights are sharded they are gathered and let go again.
        """
        if self.hollow is None:
            yield self.ranks.unwrapped(self.module)
            return
        with filled(self.hollow, self.module) as module:
            yield module

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def step(self, *, share: float, max_norm: float | None) -> float:
        """Take a step with a share of the learning rate; return the gradient's norm."""
        norm = gradient_norm(self.parameters())
        if max_norm is not None and norm > max_norm:
            scale = max_norm / (norm + 1e-6)
            torch._foreach_mul_([p.grad for p in self.parameters() if p.grad is not None], scale)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        """Return whole weights and optimiser for a resume state; called on every process."""
        return {
            "module": whole_state(self.ranks.unwrapped(self.module)),
            "optimizer": whole_optimizer_state(self.optimizer),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.ranks.unwrapped(self.module).load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


class Average:
    """An exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.shadows = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the parameters: average = decay * average + (1 - decay) * parameter."""
        for name, parameter in module.named_parameters():
            self.shadows[name].lerp_(parameter.detach(), 1.0 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite a module's parameters by their averages."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.shadows[name])

    def state(self) -> dict[str, Tensor]:
        """Return the whole averages for a resume state; called on every process."""
        return {name: whole(shadow) for name, shadow in self.shadows.items()}

    def restore(self, shadows: Mapping[str, Tensor]) -> None:
        """Take up a state."""
        for name, shadow in shadows.items():
            self.shadows[name].copy_(cut(shadow, self.shadows[name]))


def rate_share(update: int, *, hyper: Hyperparameters) -> float:
    """Return the share of the learning rate at an update, from 0 on.

    Linear to 0 at the end of the run, the first update at the whole rate (N+), after a rise over
    `warmup_updates`.
    """
    if update < hyper.warmup_updates:
        return (update + 1) / (hyper.warmup_updates + 1)
    if hyper.schedule == "constant":
        return 1.0
    return 1.0 - (update - hyper.warmup_updates) / max(1, hyper.updates - hyper.warmup_updates)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the Euclidean norm of all gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    return float(whole(torch.nn.utils.get_total_norm(gradients)))
