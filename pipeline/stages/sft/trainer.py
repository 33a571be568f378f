"""TRL's SFTTrainer, made exact and resumable.

What differs from it, and why:
- Rows come tokenised with labels, so that the mask is the one our tests look at.
- `transformers` draws the order of length-grouped batches from the global generator, which is not
  restored before a resumed epoch begins; here the order follows from seed and epoch alone. It also
  goes from long to short rows inside a window; here the batches of a window are shuffled.
- Checkpoints go through our resume store: whole or not there.
- On a CPU, of encoder-decoders, and where packed rows need a mask (see `packing.py`), the loss is
  taken from the model's logits, without TRL's entropy and accuracy of every token; elsewhere TRL's
  fused head computes it.
- The held-out loss is the mean over tokens; `transformers` averages the means of batches.
- A loss or gradient that is not finite stops before anything is saved; `transformers` hides it in
  the log and goes on.
- Nothing is reported to anybody.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data.errors import TrainingError
from data.storage import storage_errors, write_atomically
from pipeline.contract.resume import save_state
from pipeline.models.seq2seq import decoder_opening, is_encoder_decoder
from pipeline.stages.sft.arguments import (
    PairCollator,
    labels_of,
    loss_sum,
    token_dataset,
    trainer_arguments,
    with_unlabelled_row,
)
from pipeline.stages.sft.order import BucketSampler, add_residual_dropout
from pipeline.stages.sft.packing import MaskedRows, packing_collator
from pipeline.training.accelerator import (
    TrainingAccelerator,
    gathered_optimizer_state,
    gathered_state,
    take_over_sharding,
)
from pipeline.training.optimizer import build_optimizer
from pipeline.training.schedule import schedule_factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.text.chat import Rendered
    from pipeline.contract.console import Progress
    from pipeline.contract.context import StageContext
    from pipeline.stages.sft.rows import Rows
    from pipeline.stages.sft.settings import SftSettings

PROGRESS = "progress.json"


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
        args=trainer_arguments(context, shape, max_length=rows.max_length),
        train_dataset=token_dataset(rows.train),
        processing_class=tokenizer,
    )


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Looks after each step whether to evaluate, save or stop, and moves the progress bar."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up what the logs had summed when the state was saved."""
        self.trainer.restore_sums()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the sampler the epoch, on a loader that skips batches too."""
        self.trainer.order.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set what `transformers` is to do after this step."""
        trainer, step = self.trainer, int(state.global_step)
        settings = trainer.context.settings
        trainer.bar.advance(1, **trainer.shown)
        last = step == trainer.total_steps
        control.should_log |= last
        if step in trainer.candidate_steps:
            control.should_evaluate = control.should_save = True
        elif settings.evaluate_every and step % settings.evaluate_every == 0:
            control.should_evaluate = True
        if settings.save_every and step % settings.save_every == 0 and not last:
            control.should_save = True
        if trainer.context.should_stop() and not last:
            control.should_save = control.should_training_stop = True


class StageTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our order of rows, loss, logs and resume states."""

    def __init__(
        self, *, context: StageContext[SftSettings], heldout: list[Rendered], **kwargs: Any
    ) -> None:
        self.context = context
        self.heldout = sorted(heldout, key=lambda row: len(row.ids))
        self.candidates: list[Candidate] = []
        self.shown: dict[str, float] = {}
        self.last_train_loss: float | None = None
        self.heldout_loss: tuple[int, float] | None = None
        self.bar: Progress
        self.control: Any
        self.accelerator: Any
        self.optimizer: Any
        self.data_collator: Any
        self.train_dataset: Any
        self._sums: dict[str, float] = {}
        super().__init__(**kwargs)
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
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(self))
        pass_rows = self.args.per_device_train_batch_size * self.args.world_size
        self.order = BucketSampler(
            [len(ids) for ids in self.train_dataset["input_ids"]],
            batch_size=context.settings.batch_size,
            seed=context.seed,
            grouped=context.settings.group_by_length and not context.settings.packing,
            multiple=pass_rows if self.args.world_size > 1 else 1,
        )
        if self.order.fill:
            self.train_dataset = with_unlabelled_row(self.train_dataset)
        self.total_steps = self._count_steps()
        self.args.max_steps = self.total_steps
        count = min(context.settings.candidates, self.total_steps)
        self.candidate_steps = {
            math.ceil(self.total_steps * (place + 1) / count) for place in range(count)
        }

    def _count_steps(self) -> int:
        settings = self.context.settings
        if settings.max_steps is not None:
            return int(settings.max_steps)
        rows = int(self.args.per_device_train_batch_size) * int(self.args.world_size)
        batches = math.ceil(len(self.order) / rows)
        per_epoch = math.ceil(batches / int(self.args.gradient_accumulation_steps))
        return max(1, math.ceil(settings.epochs * per_epoch))

    # What TRL and transformers do otherwise.

    def create_accelerator_and_postprocess(self) -> None:
        """Let our accelerator spread the model over the processes."""
        take_over_sharding()
        super().create_accelerator_and_postprocess()
        self.accelerator = TrainingAccelerator.adopt(self.accelerator)

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count nothing: the count walks over all parameters at every step."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        return self.order

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser of the settings."""
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = build_optimizer(model, self.context.settings)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        """Make the schedule of the settings."""
        settings = self.context.settings
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: schedule_factor(
                step,
                total=num_training_steps,
                # Rounded up, as `transformers` does.
                warmup=math.ceil(num_training_steps * settings.warmup_share),
                schedule=settings.schedule,
                final_share=settings.final_share,
            ),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

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

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Clipped by the accelerator, as `clip_gradients` does; the optimiser's step comes next.
        if not bool(torch.isfinite(torch.as_tensor(norm))):
            self._refuse(int(self.state.global_step) + 1)
        return norm

    def require_finite(self) -> None:
        """Raise a `TrainingError` when a loss since the last line of metrics was not finite."""
        # What has been saved is from before.
        if not bool(torch.isfinite(self._tr_loss)):
            self._refuse(int(self.state.global_step))

    def _refuse(self, step: int) -> NoReturn:
        raise TrainingError(
            f"stage {self.context.name}: a loss or gradient was NaN or infinite at or before step "
            f"{step}; lower learning_rate or look at the rows, the last good checkpoint is kept"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of metrics; `transformers` calls this every `logging_steps`."""
        extra = self._metrics["train"]
        accuracy = extra.get("mean_token_accuracy")
        if "loss" in logs:
            self.require_finite()
            line = {"train/loss": logs["loss"], "train/learning_rate": logs["learning_rate"]}
            if "grad_norm" in logs:
                line["train/gradient_norm"] = float(logs["grad_norm"])
            if accuracy:
                line["train/token_accuracy"] = sum(accuracy) / len(accuracy)
            line["train/epoch"] = round(float(self.state.epoch or 0), 4)
            self.last_train_loss = logs["loss"]
            self.shown = {"loss": logs["loss"]}
            self.context.metrics.log(int(self.state.global_step), line)
        extra.clear()
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    # The held-out loss.

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the held-out loss, the mean over the assistant's tokens."""
        metrics: dict[str, float] = {}
        if self.heldout:
            step, loss = int(self.state.global_step), self._heldout_mean()
            self.heldout_loss = (step, loss)
            self.context.metrics.log(step, {"eval/loss": loss})
            metrics = {"eval_loss": loss}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

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

    # Candidates and resume states.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.require_finite()
        step = int(self.state.global_step)
        if step in self.candidate_steps:
            self._keep_candidate(step)
        if step < self.total_steps:
            self.context.resume.save(step, self._write_state)

    def _keep_candidate(self, step: int) -> None:
        loss = self.heldout_loss[1] if self.heldout_loss and self.heldout_loss[0] == step else None
        several = len(self.candidate_steps) > 1
        name = f"candidates/{step}" if several else "model"
        self._write_model(self.context.folder / name)
        self.candidates = [c for c in self.candidates if c.step != step]
        self.candidates.append(Candidate(step, loss, name))

    def _write_model(self, folder: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        with storage_errors(folder):
            self._save_whole(str(folder))
            (folder / "training_args.bin").unlink(missing_ok=True)

    def _save_whole(self, folder: str) -> None:
        """Save the model, gathered if it is sharded; called on every process."""
        if not self.accelerator.sharded:
            self.save_model(folder, _internal_call=True)
            return
        weights = gathered_state(self.model)
        if self.args.should_save:
            self._save(folder, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        content = gathered_optimizer_state(self.optimizer)
        if self.args.should_save:
            save_state(Path(output_dir, "optimizer.pt"), content)
            save_state(Path(output_dir, "scheduler.pt"), self.lr_scheduler.state_dict())

    def _write_state(self, folder: Path) -> None:
        target = str(folder)
        self._save_whole(target)
        self._save_optimizer_and_scheduler(target)
        self._save_scaler(target)
        self._save_rng_state(target)
        loss = self.accelerator.reduce(self._tr_loss, reduction="mean")
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
            self.state.save_to_json(str(folder / "trainer_state.json"))
            progress = {
                "loss_sum": float(loss),
                "last_logged": self._globalstep_last_logged,
                "micro_batch_size": self.context.settings.micro_batch_size,
                "candidates": [asdict(candidate) for candidate in self.candidates],
            }
            (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train to the last step, from a resume state if one is given."""
        if resume_from_checkpoint is not None:
            progress = json.loads((Path(resume_from_checkpoint) / PROGRESS).read_text("utf-8"))
            self.candidates = [Candidate(**entry) for entry in progress["candidates"]]
            self._sums = {key: progress[key] for key in ("loss_sum", "last_logged")}
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def restore_sums(self) -> None:
        """Set the running sums of the log to those of the resume state."""
        if self._sums:
            self._tr_loss.fill_(self._sums["loss_sum"])
            self._globalstep_last_logged = int(self._sums["last_logged"])

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
