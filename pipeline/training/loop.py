"""The training loop of pretraining and of the reward model.

It calls one function a step and does around it what every stage owes its user: metrics, resume
states, a clean stop on a signal. Everything that a step depends on beside the model and
optimiser follows from its number (data order, learning rate) or is part of the state (random
number generators), so a run that was cut off ends in the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import Interrupted

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext

SHOWN = ("loss", "accuracy")
"""What the progress bar tells of a step."""


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
        # A speed is the quotient of the sums; a mean of speeds would weigh quick steps too much.
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
        save: writes the state, and in it the loop's own part, into a folder.
        load: restores the state; returns the loop's part.
        evaluate: returns held-out metrics.
        label: of the progress bar.

    Returns:
        The last of every metric.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
        TrainingError: from `step`.
    """
    done, averages, last = _newest(context, load)
    if done:
        context.say(f"going on after step {done} of {rhythm.total}")

    def write(folder: Path) -> None:
        # Sums that no line has told yet go along: a resumed run logs the means of all its steps.
        save(folder, {"sums": averages.sums, "steps": averages.steps, "last": last})

    with context.progress(rhythm.total, label, done=done) as bar:
        while done < rhythm.total:
            started = time.perf_counter()
            figures = step(done)  # raises on NaN: nothing of a broken step is logged or saved
            averages.add({**figures, "seconds": time.perf_counter() - started})
            done += 1
            bar.advance(1, **{n: figures[f"train/{n}"] for n in SHOWN if f"train/{n}" in figures})
            row = averages.take() if rhythm.due(rhythm.log, done) else {}
            if evaluate is not None and rhythm.due(rhythm.evaluate, done):
                row |= evaluate()
            if row:
                context.metrics.log(done, row)
                last |= row
            # Logged before it is saved: the state knows how long the log was, and whoever goes on
            # from it cuts off what came later. A signal in the last step stops nothing: what comes
            # next is to publish. All ranks answer alike, so that they leave the loop together.
            stop = context.should_stop() and done < rhythm.total
            if stop or (rhythm.save and rhythm.due(rhythm.save, done)):
                context.resume.save(done, write)
            if stop:
                raise Interrupted(f"stage {context.name} stopped after step {done}")
    return last


def _newest(
    context: StageContext[Any], load: Callable[[Path], dict[str, Any]]
) -> tuple[int, Averages, dict[str, float]]:
    """Restore the newest whole state; return the finished steps and the loop's own part of it."""
    latest = context.resume.latest()
    if latest is None:
        return 0, Averages(), {}
    done, folder = latest
    own = load(folder)
    return done, Averages(own["sums"], own["steps"]), own["last"]
