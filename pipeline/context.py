"""What a stage is given: its settings, inputs, folder, logs, resume state and the stop flag."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

from data.errors import Interrupted, TrainingError
from data.storage import storage_errors
from pipeline.artifacts import Artifact
from pipeline.checkpoint import ResumeStore
from pipeline.config import StageSettings, external_location
from pipeline.console import Console, Progress
from pipeline.handover import HandOver, model_folder
from pipeline.tracking import Trackers

S_co = TypeVar("S_co", bound=StageSettings, covariant=True)


STOPPING = "rlhf: stopping as soon as the step at work is done; once more stops at once"


@dataclass
class StopFlag:
    """Set by SIGINT or SIGTERM; training loops look at it after each step.

    Attributes:
        signum: the signal that came.
        file: a file that says the same, to a process that another one started.
        tells: whether a signal is answered at once, on stderr.
    """

    signum: int | None = None
    file: Path | None = None
    tells: bool = True

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self.signum is not None or (self.file is not None and self.file.exists())

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Handle both signals while the block runs; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_asked(self) -> None:
        """Raise `Interrupted` when a signal asked to stop."""
        if self.asked:
            raise Interrupted("asked to stop; the same command goes on there")

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        if self.tells:
            # Not by print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{STOPPING}\n".encode())


@dataclass
class MetricsLog:
    """Appends one JSON line a step to `metrics.jsonl`; the main process alone writes.

    Attributes:
        path: the file.
        enabled: whether this process writes.
        trackers: where the same rows go, too.
        started: when the stage began.
    """

    path: Path
    enabled: bool = True
    trackers: Trackers | None = None
    started: float = field(default_factory=time.monotonic)

    def log(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """Append the metrics of a step.

        Raises:
            TrainingError: a loss is NaN or infinite.
        """
        for name, value in metrics.items():
            if "loss" in name and isinstance(value, float) and not math.isfinite(value):
                raise TrainingError(
                    f"{name} became {value} at step {step}; lower the learning rate or look at "
                    "the rows of that step, the last good checkpoint is kept"
                )
        if not self.enabled:
            return
        row = {"step": step, "seconds": round(time.monotonic() - self.started, 3), **metrics}
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.trackers is not None:
            self.trackers.log(step, metrics)

    def close(self) -> None:
        """Close the trackers."""
        if self.trackers is not None:
            self.trackers.finish()


@dataclass
class StageContext(Generic[S_co]):
    """What `run` of a stage works with.

    Attributes:
        name: name of the stage in the recipe.
        settings: its settings.
        seed: seed of data order, initialisation and sampling.
        folder: where the stage leaves everything; the runner adds the manifest.
        inputs: reference field -> artifact of the stage it names, or path / hub id.
        hand: looks at other stages' settings and model facts.
        resume: resume states.
        metrics: `metrics.jsonl`.
        console: lines and progress bars.
        stop: flag that the signal handlers set.
        rank: rank of this process, 0 on one process.
        world_size: number of processes.
        follows_from: settings marked `SameResult` that the result follows from after all, with the
            model that was loaded; a stage adds them.
    """

    name: str
    settings: S_co
    seed: int
    folder: Path
    inputs: Mapping[str, Artifact | str]
    hand: HandOver
    resume: ResumeStore
    metrics: MetricsLog
    console: Console
    stop: StopFlag = field(default_factory=StopFlag)
    rank: int = 0
    world_size: int = 1
    follows_from: set[str] = field(default_factory=set)

    @property
    def main_process(self) -> bool:
        """Whether this process writes the shared files."""
        return self.rank == 0

    def input(self, name: str) -> Path | str:
        """Return the folder of the model (or tokenizer, or files) that a reference names.

        Args:
            name: settings field, such as "model" or "checkpoints.sft".

        Returns:
            The artifact's `model/` or `tokenizer/` if it has one, else its folder; for an
            external reference the path (of a stage's folder, its `model/`) or hub id.
        """
        target = self.inputs[name]
        if isinstance(target, str):
            path = Path(external_location(target)).expanduser()
            return str(model_folder(path)) if path.is_dir() else external_location(target)
        return model_folder(target.folder)

    def input_artifact(self, name: str) -> Artifact | None:
        """Return the artifact a reference names, None for a path or hub id or an unset field."""
        target = self.inputs.get(name)
        return target if isinstance(target, Artifact) else None

    def say(self, text: str) -> None:
        """Print one line, indented under the stage's headline."""
        self.console.say(f"  {text}")

    def progress(
        self, total: int | None, label: str, *, done: int = 0, unit: str = "steps"
    ) -> AbstractContextManager[Progress]:
        """Show a progress bar while the block runs."""
        return self.console.progress(total, label, done=done, unit=unit)

    def should_stop(self) -> bool:
        """Tell whether a signal asked to stop; all ranks agree on the answer."""
        flag = self.stop.asked
        if self.world_size == 1:
            return flag
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        votes = torch.tensor([int(flag)], device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def stop_if_asked(self) -> None:
        """Raise `Interrupted` when a signal asked to stop; for work that keeps no state."""
        if self.should_stop():
            raise Interrupted(f"stage {self.name} was asked to stop")
