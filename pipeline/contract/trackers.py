"""Metrics to TensorBoard, Weights & Biases or Trackio, through accelerate's trackers.

They are a copy of `metrics.jsonl`, for watching. A killed stage logs some steps again when it goes
on; trackers can't take a step back, so what `metrics.jsonl` held by then is not sent again. What
they write stands in `runs/<recipe>/logs/<stage>/`, outside the stage's artifact; Trackio has a
folder of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import RecipeError, TrainingError
from data.json_lines import read_json_lines
from data.storage import storage_errors, write_atomically

PROJECT = "rlhf-pipeline"
RUN_ID = "run-id"
Row = tuple[int, tuple[str, ...]]


@dataclass
class Trackers:
    """The trackers of one stage; opened at the first row that they are sent.

    Attributes:
        names: such as "tensorboard".
        folder: where they keep what they write.
        title: recipe and stage.
        config: the stage's settings.
        sent: step and metrics of the rows that were logged before a resume.
        opened: accelerate's trackers.
    """

    names: Sequence[str]
    folder: Path
    title: str
    config: Mapping[str, Any]
    sent: frozenset[Row] = frozenset()
    opened: list[Any] | None = field(default=None, init=False)

    @classmethod
    def beside(
        cls, log: Path, names: Sequence[str], *, folder: Path, title: str, config: Mapping[str, Any]
    ) -> Trackers:
        """Go on where a metrics log ends; without one, what an earlier run left is removed."""
        sent = rows_of(log) if folder.is_dir() else frozenset()
        if not sent:
            with storage_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
        return cls(names, folder, title, config, sent)

    def log(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """Send the numbers of a step, once.

        Raises:
            TrainingError: a tracker can't be opened.
        """
        if not self.names or _row(step, metrics) in self.sent:
            return
        if self.opened is None:
            self.opened = [self._open(name) for name in self.names]
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        for tracker in self.opened:
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        """Close them."""
        for tracker in self.opened or ():
            tracker.finish()
        self.opened = None

    def _open(self, name: str) -> Any:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        from accelerate import PartialState

        PartialState()  # accelerate's trackers want it; a launched process has it by now
        try:
            tracker = OPEN[name](self)
            tracker.start()
        except Exception as error:
            raise TrainingError(
                f"trackers: {name} can't be started ({type(error).__name__}: {error}); leave it "
                "out, or run it offline"
            ) from error
        return tracker

    def _run_id(self) -> str:
        """Return a name that a resumed stage finds again, and one that starts anew does not."""
        path = self.folder / RUN_ID
        if not path.is_file():
            write_atomically(path, uuid.uuid4().hex[:12])
        return path.read_text(encoding="utf-8")

    def _tensorboard(self) -> Any:
        from accelerate.tracking import TensorBoardTracker

        return TensorBoardTracker(self.folder.name, self.folder.parent)

    def _wandb(self) -> Any:
        from accelerate.tracking import WandBTracker

        return WandBTracker(
            PROJECT,
            id=self._run_id(),
            resume="allow",
            name=self.title,
            dir=str(self.folder),
            config=dict(self.config),
        )

    def _trackio(self) -> Any:
        from accelerate.tracking import TrackioTracker

        name = f"{self.title}-{self._run_id()}"
        return TrackioTracker(PROJECT, name=name, resume="allow", config=dict(self.config))


OPEN: Mapping[str, Callable[[Trackers], Any]] = {
    "tensorboard": Trackers._tensorboard,
    "wandb": Trackers._wandb,
    "trackio": Trackers._trackio,
}


def require_installed(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not there.

    Raises:
        RecipeError: names it, and how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"trackers: {name} is not installed; `pip install {name}`, or leave it out"
            )


def rows_of(log: Path) -> frozenset[Row]:
    """Return step and metrics of each whole row of a metrics log."""
    if not log.is_file():
        return frozenset()
    return frozenset(
        _row(row["step"], {k: v for k, v in row.items() if k not in ("step", "seconds")})
        for row in read_json_lines(log)
    )


def _row(step: int, metrics: Mapping[str, object]) -> Row:
    return step, tuple(sorted(metrics))
