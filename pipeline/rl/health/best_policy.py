"""What a run does about the doctor's alarms: says them, stops, or goes back to the best policy.

The best policy is the one of the highest mean score among the candidates, one every
`doctor.best_every` updates, at which no alarm rang and the KL to the reference was below
`doctor.kl_per_token`. Where running statistics normalise scores, or a term of them, it goes by the
unnormalised ones. Where the run is evaluated on held-out prompts, the policies evaluated are the
candidates, and it goes by what the second judge gave them, or by their held-out score without one:
the score that a policy was trained on is the last to tell that it went too far. Its whole state is
saved beside the resume states, before the optimiser steps of its update: so the score is that of
the saved weights, on new samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.contract.resume import ResumeStore, load_state, save_state
from pipeline.rl.health.doctor import ADVICE, KEPT, SCORE, START_CHECKS, Finding, findings, sentence
from pipeline.rl.settings import DoctorSettings, Hyperparameters

BEST = "best.pt"
HELD_OUT = ("evaluation/gold", "evaluation/scores")
"""What tells the best policy where there is one, the better figure first."""


class Watched(Protocol):
    """Settings of a run that the doctor watches."""

    @property
    def doctor(self) -> DoctorSettings:
        """Which alarms ring, over how many updates."""
        ...

    @property
    def end_rule(self) -> str:
        """What a response without an end scores; "none" where ends don't matter."""
        ...

    @property
    def batch_size(self) -> int:
        """Responses of an update."""
        ...


@dataclass
class AlarmMonitor:
    """The doctor at the bedside of a run.

    Attributes:
        hyper: settings of the run.
        history: what the doctor needs of each update's metrics.
        ringing: alarms that ring now.
        ended_by: the alarms that ended the run, in words; the state with them is saved before what
            then happens, which a run that is killed meanwhile takes up again.
        value_warmup: updates that train the value model alone.
    """

    hyper: Watched
    history: list[dict[str, float]] = field(default_factory=list)
    ringing: list[str] = field(default_factory=list)
    ended_by: list[str] = field(default_factory=list)
    value_warmup: int = 0

    def observe(self, metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, Finding]]:
        """Take in an update; return metrics to log and the alarms that begin to ring."""
        self.history.append({key: metrics[key] for key in KEPT})
        by_name = findings(
            self.history,
            settings=self.hyper.doctor,
            ends_matter=self.hyper.end_rule != "none",
            value_warmup=self.value_warmup,
            batch_size=self.hyper.batch_size,
        )
        rings = [name for name, finding in by_name.items() if finding.rings]
        begins = {name: by_name[name] for name in rings if name not in self.ringing}
        self.ringing = rings
        figures = {f"doctor/{name}": finding.figure for name, finding in by_name.items()}
        return {"doctor/alarms": len(rings), **figures}, begins

    @property
    def unwell(self) -> bool:
        """Whether an alarm rings of what training did, not of the start alone."""
        return not START_CHECKS.keys() >= set(self.ringing)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"history": self.history, "ringing": self.ringing, "ended_by": self.ended_by}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.history, self.ringing = list(state["history"]), list(state["ringing"])
        self.ended_by = list(state.get("ended_by", ()))  # states from before have none


@dataclass
class BestPolicy:
    """The best state of a run so far.

    Attributes:
        store: where it is; one is kept.
        hyper: settings of the run.
        drifts: whether running statistics shape the scores, so that those of two updates do not
            compare; the sum of unnormalised scores does.
        score: its score, minus infinity when there is none.
    """

    store: ResumeStore
    hyper: Hyperparameters
    drifts: bool = False
    score: float = -math.inf

    @classmethod
    def of(cls, states: ResumeStore, hyper: Hyperparameters, *, drifts: bool) -> BestPolicy:
        """Look for one beside the resume states, left by an earlier part of the same run."""
        store = ResumeStore(
            states.folder / "best",
            states.key,
            keep=1,
            rank=states.rank,
            barrier=states.barrier,
            say=states.say,
        )
        latest = store.latest() if hyper.doctor.on_alarm == "best" else None
        score = -math.inf if latest is None else float(load_state(latest[1] / BEST)["score"])
        return cls(store, hyper, drifts, score)

    def is_better(self, metrics: Mapping[str, float], *, update: int, ringing: bool) -> bool:
        """Tell whether the policy of these metrics becomes the best, after so many updates."""
        doctor = self.hyper.doctor
        every = self.hyper.evaluate_every or doctor.best_every
        if doctor.on_alarm != "best" or ringing or update % every:
            return False
        near = metrics["objective/kl"] <= doctor.kl_per_token * metrics["objective/response_length"]
        return near and self._score(metrics) > self.score

    def note(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write score and metrics into the state that is being saved."""
        save_state(folder / BEST, {"score": self._score(metrics), "metrics": dict(metrics)})

    def keep(self, metrics: Mapping[str, float]) -> None:
        """Remember the score of the state that has been saved."""
        self.score = self._score(metrics)

    def find(self) -> tuple[int, Path, dict[str, float]] | None:
        """Return update, folder and metrics of the best state."""
        latest = self.store.latest()
        if latest is None:
            return None
        return *latest, load_state(latest[1] / BEST)["metrics"]

    def _score(self, metrics: Mapping[str, float]) -> float:
        trained_on = SCORE if self.drifts else "objective/scores"
        return next(metrics[key] for key in (*HELD_OUT, trained_on) if key in metrics)


def alarm_row(name: str, finding: Finding, *, update: int) -> dict[str, object]:
    """Return an alarm as a row of doctor.jsonl."""
    return {
        "update": update,
        "alarm": name,
        "figure": finding.figure,
        "threshold": finding.threshold,
        "told": finding.words,
        **ADVICE[name]._asdict(),
    }


def alarm_lines(begins: Mapping[str, Finding], *, update: int) -> list[str]:
    """Return the alarms that begin to ring as lines of a log."""
    return [f"update {update}: {sentence(name, finding)}" for name, finding in begins.items()]
