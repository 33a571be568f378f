"""One optimiser's step on rows of any kind, spread over processes, and the state of a training.

Works on one process or many through `accelerate`. The loss of a step is the summed loss of what its
rows ask for over the number of that in the whole step, so that neither micro-batches nor processes
change it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import RecipeError
from pipeline.contract.resume import load_state, save_state
from pipeline.models.load import resolve_bf16
from pipeline.training.accelerator import TrainingAccelerator
from pipeline.training.objectives.rows import Batch
from pipeline.training.optimizer import build_optimizer, clip_gradients, set_learning_rate
from pipeline.training.settings import TrainingSettings
from pipeline.training.state import load_training_state, save_training_state
from reward.network.short_attention import use_short_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Stepping(ABC):
    """A model in training; a dataclass of those that say what its rows are.

    Attributes:
        model: the bare model.
        settings: optimiser, schedule, precision.
        accelerator: spreads the work over processes.
    """

    model: PreTrainedModel
    settings: TrainingSettings
    accelerator: TrainingAccelerator

    def _make_ready(
        self, *, batch_size: int, micro_batch_size: int | None, total_steps: int
    ) -> None:
        """Put the model onto its device and make its optimiser.

        Args:
            batch_size: rows of a step, over all processes.
            micro_batch_size: rows of a forward pass; as many as there are when None.
            total_steps: that the schedule is for.

        Raises:
            RecipeError: the batch can't be shared out evenly.
        """
        world = self.accelerator.num_processes
        if batch_size % world:
            raise RecipeError(
                f"batch_size {batch_size} can't be shared by {world} processes; make "
                "it a multiple of their number"
            )
        if not (self.accelerator.deepspeed or self.accelerator.sharded):
            self.model.to(self.accelerator.device)  # here, since it is tried on a row first
        self.micro_batch_size = micro_batch_size or batch_size
        self.total_steps = total_steps
        self.bf16 = resolve_bf16(self.settings.bf16, self.accelerator.device)
        self._unprepared = self._optimizer()
        self.model.train()
        use_short_attention(self.model, self.accelerator.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of the bare model."""
        return build_optimizer(self.model, self.settings)

    def _spread(self, *, compiled: bool = False) -> None:
        """Spread model and optimiser over the processes."""
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, self._unprepared)
        self.forward = torch.compile(self.prepared) if compiled else self.prepared
        self.parameters = [p for p in self.prepared.parameters() if p.requires_grad]

    @abstractmethod
    def _batch(self, number: int) -> Batch:
        """Return this process's part of a step's rows, on its device."""

    @abstractmethod
    def _summed_loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of all that rows ask for, summed, in nats."""

    def step(self, number: int) -> dict[str, float]:
        """Do one optimiser's step, counted from 0; return its metrics.

        Raises:
            TrainingError: loss or gradient is not finite; the weights are as before.
        """
        rate = set_learning_rate(self.optimizer, self.settings, step=number, total=self.total_steps)
        batch = self._batch(number)  # this process's B / processes rows, T tokens each
        # What the loss is a mean over, and what was learned from.
        asked, learned = self.accelerator.summed([batch.predicted(), batch.learned()])
        [nats] = self.accelerator.summed([self._backward(batch, asked)])
        loss = nats / asked
        norm = clip_gradients(  # raises before the optimiser touches the weights
            self.accelerator,
            self.parameters,
            self.settings.max_gradient_norm,
            loss=loss,
            step=number + 1,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "train/loss": loss,
            "train/learning_rate": rate,
            "train/gradient_norm": norm,
            "tokens": learned,
        }

    def _backward(self, batch: Batch, asked: float) -> float:
        """Gather the gradient of the step's mean loss; return this process's summed loss."""
        # Gradients are averaged over processes, so each scales its own up to make it their sum.
        scale = self.accelerator.num_processes / asked
        nats = torch.zeros((), device=self.accelerator.device)
        size, rows = self.micro_batch_size, len(batch.tokens_BT)
        for start in range(0, rows, size):
            # Gradients gather here until the last micro-batch; with it processes add theirs up.
            last = start + size >= rows
            with self.accelerator.gradient_sync(self.prepared, when=last):
                with torch.autocast(nats.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    part = self._summed_loss(batch.rows(start, start + size))
                self.accelerator.backward(part * scale)
            nats += part.detach()
        return float(nats)

    @property
    def shares_evaluation(self) -> bool:
        """Whether processes judge unequal parts; where weights are sharded, every one judges all.

        The wrapper, which waits for the others, stays out of it then.
        """
        return not (self.accelerator.deepspeed or self.accelerator.sharded)

    @property
    def judged(self) -> Any:
        """The model to judge with."""
        several = self.accelerator.num_processes > 1
        return self.model if self.shares_evaluation and several else self.forward

    def save(self, folder: Path, own: dict[str, Any]) -> None:
        """Write the whole state; called on every process."""
        if not self.accelerator.deepspeed:
            rank = self.accelerator.process_index
            save_training_state(folder, self.model, self.optimizer, extra=own, rank=rank)
            return
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            save_state(folder / "loop.pt", own)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore the state; return what the loop kept in it."""
        if not self.accelerator.deepspeed:
            rank = self.accelerator.process_index
            return load_training_state(folder, self.model, self.optimizer, rank=rank)
        self.accelerator.load_state(str(folder))
        return load_state(folder / "loop.pt")

    def weights(self) -> dict[str, torch.Tensor] | None:
        """Return the gathered weights where they are sharded; called on every process."""
        if not (self.accelerator.deepspeed or self.accelerator.sharded):
            return None
        gathered: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.prepared)
        return gathered
