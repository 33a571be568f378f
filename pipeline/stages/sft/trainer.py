"""TRL's SFTTrainer on the host of all of TRL's trainers.

What differs from it beside what `training/trl.py` tells, and why:
- Rows come tokenised with labels, so that the mask is the one our tests look at.
- `transformers` goes from long to short rows inside a window of length-grouped batches; here the
  batches of a window are shuffled.
- On a CPU, of encoder-decoders, and where packed rows need a mask (see `packing.py`), the loss is
  taken from the model's logits, without TRL's entropy and accuracy of every token; elsewhere TRL's
  fused head computes it.
- The held-out loss is the mean over tokens; `transformers` averages the means of batches.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data.storage import storage_errors, write_atomically
from pipeline.models.seq2seq import decoder_opening, is_encoder_decoder
from pipeline.stages.sft.arguments import (
    PairCollator,
    labels_of,
    loss_sum,
    sft_arguments,
    token_dataset,
    with_unlabelled_row,
)
from pipeline.stages.sft.order import BucketSampler, add_residual_dropout
from pipeline.stages.sft.packing import MaskedRows, packing_collator
from pipeline.training.trl import TrlHost

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.text.chat import Rendered
    from pipeline.contract.context import StageContext
    from pipeline.stages.sft.rows import Rows
    from pipeline.stages.sft.settings import SftSettings


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to choose from; `folder` is "model" when it is the only one."""

    step: int
    loss: float | None
    folder: str


def build_trainer(
    context: StageContext[SftSettings],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    shape: tuple[int, int],
) -> StageTrainer:
    """Return a trainer that is ready to train or to resume."""
    settings = context.settings
    if settings.dropout:
        add_residual_dropout(model, settings.dropout)
    return StageTrainer(
        context=context,
        heldout=rows.heldout,
        model=model,
        args=sft_arguments(context, shape, max_length=rows.max_length),
        train_dataset=token_dataset(rows.train),
        processing_class=tokenizer,
    )


class StageTrainer(TrlHost, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our order of rows, loss and candidates."""

    order: BucketSampler

    def __init__(
        self, *, context: StageContext[SftSettings], heldout: list[Rendered], **kwargs: Any
    ) -> None:
        self.heldout = sorted(heldout, key=lambda row: len(row.ids))
        self.candidates: list[Candidate] = []
        self.heldout_loss: tuple[int, float] | None = None
        super().__init__(context=context, **kwargs)
        if context.settings.packing:
            self.data_collator = packing_collator(
                self.model, self.data_collator, longest=self.args.max_length, stage=context.name
            )
        if is_encoder_decoder(self.model):
            self.data_collator = PairCollator(
                decoder_opening(self.model), self.processing_class.pad_token_id
            )
        # Those are no batches for TRL's own loss.
        self.own_batches = isinstance(self.data_collator, MaskedRows | PairCollator)
        if self.order.fill:
            self.train_dataset = with_unlabelled_row(self.train_dataset)
        count = min(context.settings.candidates, self.total_steps)
        self.kept_steps = {
            math.ceil(self.total_steps * (place + 1) / count) for place in range(count)
        }

    def make_order(self) -> BucketSampler:
        """Return the order of rows, or of packs of them."""
        settings = self.context.settings
        pass_rows = self.args.per_device_train_batch_size * self.args.world_size
        return BucketSampler(
            [len(ids) for ids in self.train_dataset["input_ids"]],
            batch_size=settings.batch_size,
            seed=self.context.seed,
            grouped=settings.group_by_length and not settings.packing,
            multiple=pass_rows if self.args.world_size > 1 else 1,
        )

    def count_steps(self) -> int:
        """Return the optimiser's steps of all epochs, or `max_steps`."""
        settings: SftSettings = self.context.settings
        if settings.max_steps is not None:
            return settings.max_steps
        rows = int(self.args.per_device_train_batch_size) * int(self.args.world_size)
        batches = math.ceil(len(self.order) / rows)
        per_epoch = math.ceil(batches / int(self.args.gradient_accumulation_steps))
        return max(1, math.ceil(settings.epochs * per_epoch))

    def extra_line(self, sums: dict[str, Sequence[float]]) -> dict[str, float]:
        """Return the accuracy of tokens where TRL counted it, and the epoch."""
        line = {"train/epoch": round(float(self.state.epoch or 0), 4)}
        accuracy = sums.get("mean_token_accuracy")
        if accuracy:
            line = {"train/token_accuracy": sum(accuracy) / len(accuracy), **line}
        return line

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of the losses of the assistant's tokens over the tokens of the step."""
        own = inputs["input_ids"].device.type == "cpu" or self.own_batches
        if not own or return_outputs or self.aux_loss_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total, count = loss_sum(model, inputs)
        if num_items_in_batch is None:
            return total / count.clamp(min=1)
        # World average their gradients, and `num_items_in_batch` counts the tokens of all.
        factor = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return factor * total / torch.as_tensor(num_items_in_batch).clamp(min=1)

    # The held-out loss.

    def held_out(self) -> dict[str, float]:
        """Return the held-out loss, the mean over the assistant's tokens."""
        if not self.heldout:
            return {}
        self.heldout_loss = (int(self.state.global_step), self._heldout_mean())
        return {"loss": self.heldout_loss[1]}

    @torch.no_grad()
    def _heldout_mean(self) -> float:
        size = self.args.per_device_train_batch_size
        batches = [self.heldout[i : i + size] for i in range(0, len(self.heldout), size)]
        ranks, rank = self.args.world_size, self.args.process_index
        collate: Any = DataCollatorForLanguageModeling(
            pad_token_id=self.processing_class.pad_token_id,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )
        if isinstance(self.data_collator, PairCollator):
            collate = self.data_collator
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        for place in range(rank, ranks * math.ceil(len(batches) / ranks), ranks):
            # World without a batch left go along, since sharded models need all; it counts 0.
            rows = batches[min(place, len(batches) - 1)]
            inputs = self._prepare_inputs(
                collate([{"input_ids": row.ids, "labels": labels_of(row)} for row in rows])
            )
            with self.compute_loss_context_manager():
                total, count = loss_sum(self.model_wrapped, inputs)
            if place < len(batches):
                sums += torch.stack([total.double().cpu(), count.double().cpu()])
        self.model.train()
        summed = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
        return float(summed[0] / summed[1].clamp(min=1))

    # Candidates.

    def keep(self, step: int) -> None:
        """Write the model of a step as a candidate."""
        loss = self.heldout_loss[1] if self.heldout_loss and self.heldout_loss[0] == step else None
        name = f"candidates/{step}" if len(self.kept_steps) > 1 else "model"
        self.write_model(self.context.folder / name)
        self.candidates = [c for c in self.candidates if c.step != step]
        self.candidates.append(Candidate(step, loss, name))

    def progress(self) -> dict[str, Any]:
        """Return what a state keeps beside weights and optimiser."""
        candidates = [asdict(candidate) for candidate in self.candidates]
        return {**super().progress(), "candidates": candidates}

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up the candidates of a state."""
        super().restore(progress)
        self.candidates = [Candidate(**entry) for entry in progress["candidates"]]

    def publish(self, folder: Path) -> Candidate:
        """Make the best candidate the stage's model and return it; the last one on a tie."""
        best = min(self.candidates, key=lambda c: (math.inf if c.loss is None else c.loss, -c.step))
        if self.context.main_process:
            with storage_errors(folder):
                if best.folder != "model":
                    shutil.rmtree(folder / "model", ignore_errors=True)
                    shutil.copytree(folder / best.folder, folder / "model")
                listed = [asdict(c) for c in sorted(self.candidates, key=lambda c: c.step)]
                content = {"best": best.step, "candidates": listed}
                write_atomically(folder / "candidates.json", json.dumps(content, indent=2) + "\n")
        return best
