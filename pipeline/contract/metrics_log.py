"""The metrics of a stage, a JSON line each."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import TrainingError
from data.json_lines import append_json_lines
from pipeline.contract.trackers import Trackers


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
        append_json_lines(self.path, [row])
        if self.trackers is not None:
            self.trackers.log(step, metrics)

    def close(self) -> None:
        """Close the trackers."""
        if self.trackers is not None:
            self.trackers.finish()
