"""Trains a head on windows of rows, and judges it on rows kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.models.trials import evaluating
from pipeline.stages.finetune.heads import Example, Head, HeadBatch
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.training.accelerator import TrainingAccelerator, make_accelerator
from pipeline.training.corpus import ChunkOrder
from pipeline.training.stepping import Stepping

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class HeadTrainer(Stepping):
    """A model with a head in training.

    Attributes:
        model: the bare model.
        head: makes batches of windows and reads logits.
        examples: to learn.
        settings: how to train.
        seed: of the order of windows.
        accelerator: spreads the work over processes.
    """

    model: PreTrainedModel
    head: Head
    examples: Sequence[Example]
    settings: FinetuneSettings
    seed: int
    accelerator: TrainingAccelerator = field(default_factory=lambda: make_accelerator(bf16=False))

    def __post_init__(self) -> None:
        """Spread the model over the processes."""
        self.windows = [window for example in self.examples for window in example.windows]
        self._make_ready(
            batch_size=self.settings.batch_size,
            micro_batch_size=self.settings.micro_batch_size,
            total_steps=self.settings.total_steps(len(self.windows)),
        )
        self._spread()
        self.order = ChunkOrder(len(self.windows), seed=self.seed)

    def _batch(self, number: int) -> HeadBatch:
        chosen = self.order.batch(number, self.settings.batch_size)
        mine = chosen[self.accelerator.process_index :: self.accelerator.num_processes]
        return self.head.batch([self.windows[at] for at in mine]).to(self.accelerator.device)

    def _summed_loss(self, batch: Any) -> Tensor:
        return self.head.summed_loss(self.forward, batch)

    def predict(self, examples: Sequence[Example], *, exact: bool = False) -> list[dict[str, Any]]:
        """Return what is said of each row, in order, on every process.

        Args:
            examples: rows.
            exact: as the saved model says it, never in bf16.
        """
        bf16 = self.bf16 and not exact
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        if not self.shares_evaluation or world == 1:
            return self._predict(examples, bf16)
        mine = list(range(rank, len(examples), world))
        said = zip(mine, self._predict([examples[at] for at in mine], bf16), strict=True)
        return [each for _, each in sorted(gather_object([*said]), key=lambda pair: pair[0])]

    @torch.no_grad()
    def _predict(self, examples: Sequence[Example], bf16: bool) -> list[dict[str, Any]]:
        windows = [(at, window) for at, each in enumerate(examples) for window in each.windows]
        # Windows of like length come together, and go back to their rows.
        order = sorted(range(len(windows)), key=lambda place: -len(windows[place][1].ids))
        logits: dict[int, Tensor] = {}
        device = self.accelerator.device
        with evaluating(self.model):
            for start in range(0, len(order), self.micro_batch_size):
                places = order[start : start + self.micro_batch_size]
                batch = self.head.batch([windows[place][1] for place in places]).to(device)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    found = self.head.forward(self.judged, batch).cpu()
                for place, each in zip(places, found, strict=True):
                    size = len(windows[place][1].ids)
                    logits[place] = each[:size] if each.ndim == 2 else each
        by_row: list[list[Tensor]] = [[] for _ in examples]
        for place, (at, _) in enumerate(windows):
            by_row[at].append(logits[place])
        return [
            self.head.prediction(example, own)
            for example, own in zip(examples, by_row, strict=True)
        ]
