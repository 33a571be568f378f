"""What training loops share: optimiser, learning rate, clipping, saved state, and the loop itself.

The loop calls one function a step and does around it what every stage owes its user: metrics,
resume states, a clean stop on a signal. Everything that a step depends on beside the model and
optimiser follows from its number (data order, learning rate) or is part of the state (random
number generators), so a run that was cut off ends in the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, load_model, save_file
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn

from data.errors import Interrupted, TrainingError
from pipeline.checkpoint import load_state, rng_state, save_state
from pipeline.sharding import (
    is_sharded,
    restore_own_rng,
    whole,
    whole_optimizer_state,
    whole_state,
)

if TYPE_CHECKING:
    from pipeline.context import StageContext


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone: no bias, gain of a norm, or other vector."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(
    parameters: Iterable[Tensor], max_norm: float, *, loss: float, step: int
) -> float:
    """Scale gradients down to a norm, and refuse those that are not finite.

    Called before the optimiser's step, so that the weights stay as they were.

    Args:
        parameters: whose gradients.
        max_norm: longest norm that is left as it is.
        loss: of this step, refused as well when it is not finite.
        step: number of the step, for the sentence.

    Returns:
        The norm before clipping.

    Raises:
        TrainingError: loss or norm is NaN or infinite.
    """
    norm = float(whole(nn.utils.clip_grad_norm_(parameters, max_norm)))
    if not math.isfinite(loss) or not math.isfinite(norm):
        what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient norm became {norm}"
        raise TrainingError(
            f"{what} at step {step}; lower the learning rate or look at the rows of that step, "
            "the last good checkpoint is kept"
        )
    return norm


def save_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: Any | None = None,
    extra: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> None:
    """Write weights, optimiser, scheduler, random state and `extra` into a folder.

    Rank 0 writes what all ranks share, every rank its random state. To be called by
    `ResumeStore.save`, which makes the folder whole or not there. Sharded weights are gathered, so
    that the state is the same on any number of processes.

    Args:
        folder: an existing folder.
        model: the bare module, not a wrapper.
        optimizer: its optimiser.
        scheduler: whatever has `state_dict`.
        extra: tensors, numbers, strings, lists and dictionaries of the caller.
        rank: of this process.
    """
    save_state(folder / f"rng-{rank}.pt", rng_state())
    sharded = is_sharded(model)
    weights = whole_state(model) if sharded else {}
    optimizer_state = whole_optimizer_state(optimizer)
    if rank != 0:
        return
    if sharded:
        # A tensor of two names goes once, as `save_weights` does it.
        once = {id(tensor): name for name, tensor in reversed(weights.items())}
        save_file({name: weights[name] for name in once.values()}, folder / "model.safetensors")
    else:
        save_weights(model, str(folder / "model.safetensors"))
    state = {
        "optimizer": optimizer_state,
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "extra": dict(extra or {}),
    }
    save_state(folder / "state.pt", state)


def load_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: Any | None = None,
    rank: int = 0,
) -> dict[str, Any]:
    """Restore what `save_training_state` wrote; return `extra`.

    The state may be of another number of processes; one that is new keeps its random state.
    """
    if is_sharded(model):
        model.load_state_dict(load_file(folder / "model.safetensors"))
    else:
        load_model(model, str(folder / "model.safetensors"))
    state = load_state(folder / "state.pt")
    optimizer.load_state_dict(state["optimizer"])
    if scheduler is not None:
        scheduler.load_state_dict(state["scheduler"])
    restore_own_rng(folder, rank)
    extra: dict[str, Any] = state["extra"]
    return extra


@dataclass
class Averages:
    """Sums of what steps report, until they are logged; part of the state."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, figures: Mapping[str, float]) -> None:
        """Add the figures of one step."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def take(self) -> dict[str, float]:
        """Return the means, tokens a second in place of tokens and seconds, and start again."""
        tokens, seconds = self.sums.pop("tokens", 0.0), self.sums.pop("seconds", 0.0)
        means = {name: value / self.steps for name, value in self.sums.items()}
        if tokens and seconds:
            means["train/tokens_per_second"] = tokens / seconds
        self.sums, self.steps = {}, 0
        return means


@dataclass(frozen=True)
class Rhythm:
    """How often a loop does what, in steps; 0 is never (but for the last step).

    Attributes:
        total: steps in all.
        log: between two lines of metrics.
        evaluate: between two evaluations.
        save: between two resume states.
    """

    total: int
    log: int = 10
    evaluate: int = 0
    save: int = 0

    def due(self, every: int, done: int) -> bool:
        """Tell whether something is due after so many steps."""
        return done == self.total or (every > 0 and done % every == 0)


def run_loop(
    context: StageContext[Any],
    rhythm: Rhythm,
    *,
    step: Callable[[int], Mapping[str, float]],
    save: Callable[[Path, dict[str, Any]], None],
    load: Callable[[Path], dict[str, Any]],
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    label: str = "training",
) -> dict[str, float]:
    """Run the steps that are left, from the newest whole state on.

    Args:
        context: metrics, progress, resume states and stop flag of the stage.
        rhythm: how often what.
        step: does the step of this number, counted from 0; returns its metrics, means of which
            are logged, and `tokens` for the speed.
        save: writes the state and the loop's own part of it into a folder.
        load: restores the state; returns the loop's part.
        evaluate: returns held-out metrics.
        label: of the progress bar.

    Returns:
        The last of every metric.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
        TrainingError: from `step`.
    """
    done, averages, last = 0, Averages(), dict[str, float]()
    latest = context.resume.latest()
    if latest is not None:
        done, folder = latest
        own = load(folder)
        averages, last = Averages(own["sums"], own["steps"]), own["last"]
        context.say(f"going on after step {done} of {rhythm.total}")

    def write(folder: Path) -> None:
        save(folder, {"sums": averages.sums, "steps": averages.steps, "last": last})

    with context.progress(rhythm.total, label, done=done) as bar:
        while done < rhythm.total:
            started = time.perf_counter()
            figures = step(done)
            averages.add({**figures, "seconds": time.perf_counter() - started})
            done += 1
            bar.advance(1, loss=figures.get("train/loss", math.nan))
            row = averages.take() if rhythm.due(rhythm.log, done) else {}
            if evaluate is not None and rhythm.due(rhythm.evaluate, done):
                row |= evaluate()
            if row:
                context.metrics.log(done, row)
                last |= row
            finished = done == rhythm.total
            stop = context.should_stop() and not finished
            if stop or (rhythm.save and done % rhythm.save == 0) or (finished and rhythm.save):
                context.resume.save(done, write)
            if stop:
                raise Interrupted(f"stage {context.name} stopped after step {done}")
    return last
