"""One host for TRL's trainers, which makes them exact, resumable and quiet.

What differs from TRL and `transformers`, and why:
- The order of rows follows from seed and epoch alone: theirs is drawn from the global generator,
  which is not restored before a resumed epoch begins.
- The optimiser and its schedule are those of all stages.
- Checkpoints go through our resume store: whole or not there, with what the logs had summed.
- A loss or gradient that is not finite stops before anything is saved; `transformers` hides it in
  the log and goes on.
- Our accelerator spreads the model over the processes.
- Nothing is reported to anybody.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import datasets
import torch
import transformers
from torch import nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback

from data.errors import HandOverError, Interrupted, RecipeError, TrainingError
from data.storage import storage_errors
from pipeline.contract.resume import save_state
from pipeline.models.load import (
    context_length,
    load_policy,
    load_tokenizer,
    pick_device,
    require_distinct_pad,
    require_rows,
    resolve_bf16,
)
from pipeline.models.saving import try_saving
from pipeline.models.trials import require_policy
from pipeline.training.accelerator import (
    TrainingAccelerator,
    gathered_optimizer_state,
    gathered_state,
    take_over_sharding,
)
from pipeline.training.optimizer import build_optimizer
from pipeline.training.schedule import schedule_factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from pipeline.contract.console import Progress
    from pipeline.contract.context import StageContext

    Arguments = TypeVar("Arguments", bound=TrainingArguments)

PROGRESS = "progress.json"


class Order(Sampler[int]):
    """Row numbers of an epoch, as `set_epoch` chose it."""

    def __len__(self) -> int:
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; nothing where there is but one."""


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Looks after each step whether to evaluate, save or stop, and moves the progress bar."""

    def __init__(self, trainer: TrlHost) -> None:
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
        if step in trainer.kept_steps:
            control.should_evaluate = control.should_save = True
        elif settings.evaluate_every and step % settings.evaluate_every == 0:
            control.should_evaluate = True
        if settings.save_every and step % settings.save_every == 0 and not last:
            control.should_save = True
        if trainer.context.should_stop() and not last:
            control.should_save = control.should_training_stop = True


class TrlHost(Trainer):  # type: ignore[misc]
    """What stands before one of TRL's trainers: `class Ours(TrlHost, DPOTrainer)`.

    The stage's settings are a `TrainingSettings` with `log_every`, `save_every` and
    `evaluate_every`. A trainer gives `make_order`, and what it logs beside the loss.
    """

    judged_as = "eval/"
    """Before the names of what `held_out` returns."""

    def __init__(self, *, context: StageContext[Any], **kwargs: Any) -> None:
        self.context = context
        self.shown: dict[str, float] = {}
        self.last_train_loss: float | None = None
        self.last_line: dict[str, float] = {}
        self.bar: Progress
        self.control: Any
        self.accelerator: Any
        self.optimizer: Any
        self.data_collator: Any
        self.train_dataset: Any
        self.judged: dict[str, float] = {}
        self._sums: dict[str, Any] = {}
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(self))
        self.order = self.make_order()
        self.total_steps = self.count_steps()
        self.args.max_steps = self.total_steps
        self.kept_steps = {self.total_steps}

    def make_order(self) -> Order:
        """Return the order of rows."""
        raise NotImplementedError

    def count_steps(self) -> int:
        """Return the optimiser's steps in all."""
        raise NotImplementedError

    def extra_line(self, sums: dict[str, Sequence[float]]) -> dict[str, float]:
        """Return what a line of metrics holds beside loss, rate and norm; `sums` are TRL's."""
        raise NotImplementedError

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

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
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
        sums = self._metrics["train"]
        if "loss" in logs:
            self.require_finite()
            line = {"train/loss": logs["loss"], "train/learning_rate": logs["learning_rate"]}
            if "grad_norm" in logs:
                line["train/gradient_norm"] = float(logs["grad_norm"])
            line |= self.extra_line(sums)
            self.last_train_loss, self.last_line = logs["loss"], line
            self.shown = {"loss": logs["loss"]}
            self.context.metrics.log(int(self.state.global_step), line)
        sums.clear()
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure what is held out and log it."""
        self.judged = metrics = self.held_out()
        if metrics:
            step = int(self.state.global_step)
            line = {f"{self.judged_as}{name}": number for name, number in metrics.items()}
            self.context.metrics.log(step, line)
        told = {f"eval_{name}": number for name, number in metrics.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, told)
        return told

    def held_out(self) -> dict[str, float]:
        """Return the figures of what is held out; called on every process."""
        return {}

    # Resume states, and the model.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.require_finite()
        step = int(self.state.global_step)
        if step in self.kept_steps:
            self.keep(step)
        if step < self.total_steps:
            self.context.resume.save(step, self._write_state)

    def keep(self, step: int) -> None:
        """Write the model of one of `kept_steps`."""
        self.write_model(self.context.folder / "model")

    def write_model(self, folder: Path) -> None:
        """Write the model and its tokenizer; called on every process."""
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
                **self.progress(),
            }
            (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def progress(self) -> dict[str, Any]:
        """Return what a state keeps beside weights and optimiser, as JSON; see `restore`."""
        return {
            "sums": {name: list(values) for name, values in self._metrics["train"].items()},
            "micro_batch_size": self.context.settings.micro_batch_size,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` returned.

        Raises:
            RecipeError: the result follows from micro-batches, and the state is of others.
        """
        size = self.context.settings.micro_batch_size
        before = progress.get("micro_batch_size", size)
        if self.aux_loss_enabled and before != size:
            raise RecipeError(
                f"stage {self.context.name}: micro_batch_size was {before} and is {size} now, and "
                "the loss that balances this model's experts is of each micro-batch; set it back, "
                "or begin anew with --force"
            )

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train to the last step, from a resume state if one is given."""
        if resume_from_checkpoint is not None:
            self._sums = json.loads((Path(resume_from_checkpoint) / PROGRESS).read_text("utf-8"))
            self.restore(self._sums)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def restore_sums(self) -> None:
        """Set the running sums of the log to those of the resume state."""
        if self._sums:
            self._tr_loss.fill_(self._sums["loss_sum"])
            self._globalstep_last_logged = int(self._sums["last_logged"])
            # Those of TRL are the same on all processes; a state of before had none.
            for name, values in self._sums.get("sums", {}).items():
                self._metrics["train"][name] = list(values)

    def run(self) -> None:
        """Train from the last resume state, or from the start.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
        """
        context, latest = self.context, self.context.resume.latest()
        if self.aux_loss_enabled:  # a model's experts are balanced in each micro-batch
            context.follows_from.add("micro_batch_size")
        done = 0 if latest is None else latest[0]
        if latest is not None:
            context.say(f"going on after step {done} of {self.total_steps}")
        with context.progress(self.total_steps, context.settings.kind, done=done) as bar:
            self.bar = bar
            self.train(resume_from_checkpoint=None if latest is None else str(latest[1]))
        if self.state.global_step < self.total_steps:
            raise Interrupted(f"stage {context.name} stopped after step {self.state.global_step}")


def load_start(
    context: StageContext[Any], field: str = "model"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return what a stage's `field` and `tokenizer` name, tried out and ready to train."""
    settings = context.settings
    source = context.input(field if settings.tokenizer is None else "tokenizer")
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    require_distinct_pad(tokenizer, source)
    model = load_policy(context.input(field), trust_remote_code=settings.trust_remote_code)
    require_rows(model, tokenizer, source)
    try_saving(context, model, tokenizer)
    require_policy(model, getattr(settings, field))
    return model, tokenizer


def longest_row(context: StageContext[Any], model: PreTrainedModel) -> int:
    """Return the tokens of the longest row: `max_length`, or the model's context.

    Raises:
        RecipeError: neither is known.
        HandOverError: the context is shorter.
    """
    limit = context_length(model)
    given: int | None = context.settings.max_length
    longest = given or limit
    if longest is None:
        raise RecipeError(f"stage {context.name}: the model's context is unknown; set max_length")
    if given is not None and limit is not None and given > limit:
        raise HandOverError(
            f"stage {context.name}: max_length is {given} tokens, the context of "
            f"{context.settings.model} holds {limit}; lower it or use a model with a longer context"
        )
    return longest


def trainer_arguments(
    kind: type[Arguments], context: StageContext[Any], shape: tuple[int, int], **own: Any
) -> Arguments:
    """Return TRL's arguments for a stage.

    Args:
        kind: of configuration, such as `SFTConfig`.
        context: of the stage.
        shape: rows of a pass of one process and passes of a step, as `micro_batches` returned.
        own: what this kind has of its own.
    """
    settings, device = context.settings, pick_device()
    arguments: Arguments = kind(
        output_dir=str(context.folder / "work" / "trainer"),
        use_cpu=device.type == "cpu",
        seed=context.seed % 2**32,
        # What TRL would turn on unasked.
        bf16=resolve_bf16(settings.bf16, device),
        fp16=False,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
        log_level_replica="error",
        logging_nan_inf_filter=False,
        logging_steps=settings.log_every,
        logging_first_step=False,
        save_strategy="no",
        eval_strategy="no",
        restore_callback_states_from_checkpoint=False,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        # The model keeps its cache for whoever samples from it; training asks for none.
        use_cache=True,
        per_device_train_batch_size=shape[0],
        gradient_accumulation_steps=shape[1],
        max_grad_norm=settings.max_gradient_norm,
        **own,
    )
    # Several accelerators and one process: `transformers` would use DataParallel, TRL refuses it.
    _ = arguments.device
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


class _Tell(logging.Handler):
    """Passes a library's warnings on, each once and in one line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say, self.seen = say, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Say a warning that was not said yet."""
        text = " ".join(record.getMessage().split())
        if text not in self.seen:
            self.seen.add(text)
            self.say(f"{record.name.partition('.')[0]}: {text}")


@contextlib.contextmanager
def quiet_libraries(say: Callable[[str], None]) -> Iterator[None]:
    """Silence the progress bars and notes of the libraries while the block runs, but no warning.

    Args:
        say: told of what TRL and transformers warn of.
    """
    bars, verbosity = datasets.are_progress_bars_disabled(), transformers.logging.get_verbosity()
    loggers = [logging.getLogger(name) for name in ("trl", "transformers")]
    before = [(each.level, each.propagate, each.handlers) for each in loggers]
    tell = _Tell(say)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_warning()
    for each in loggers:
        each.setLevel(logging.WARNING)
        each.propagate, each.handlers = False, [tell]
    try:
        with warnings.catch_warnings():
            # Names that TRL 1.16 still calls as transformers did before.
            warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
            each.setLevel(level)
            each.propagate, each.handlers = propagate, handlers
        if not bars:
            datasets.enable_progress_bars()
