"""What a stage is given: its settings, inputs, folder, logs, resume state and the stop flag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from data.errors import Interrupted
from data.records import Record
from data.sources.read import ReadReport
from data.storage import expand
from pipeline.contract.artifacts import Artifact
from pipeline.contract.console import Console, Progress
from pipeline.contract.handover import HandOver, model_folder
from pipeline.contract.metrics_log import MetricsLog
from pipeline.contract.resume import ResumeStore
from pipeline.contract.settings import SourceSettings, StageSettings, external_location
from pipeline.contract.sources import Row, read_sources
from pipeline.contract.stop import StopFlag

S_co = TypeVar("S_co", bound=StageSettings, covariant=True)


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
            path = expand(external_location(target))
            return str(model_folder(path)) if path.is_dir() else external_location(target)
        return model_folder(target.folder)

    def input_artifact(self, name: str) -> Artifact | None:
        """Return the artifact a reference names, None for a path or hub id or an unset field."""
        target = self.inputs.get(name)
        return target if isinstance(target, Artifact) else None

    def read(
        self,
        field: str,
        sources: Iterable[SourceSettings],
        convert: Callable[[Record], Row],
        *,
        wanted: str,
        reports: list[ReadReport] | None = None,
    ) -> Iterator[Row]:
        """Yield what the sources of a field hold, see `read_sources`."""
        where, placed = f"stage {self.name}: {field}", map(self.hand.placed, sources)
        return read_sources(
            [one for one in placed if one],
            convert,
            where=where,
            wanted=wanted,
            say=self.say,
            reports=reports,
        )

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
