"""What to change where a stage does not fit: each change tried by making the estimate anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.contract.settings import StageSettings
from pipeline.estimate.model.costs import StageCost
from pipeline.estimate.model.estimator import Estimator
from pipeline.stages.ppo.settings import PpoSettings

Estimate = Callable[[str, Any, Estimator], StageCost]

KNOBS = {
    "sampling": ("generation_batch_size", "batch_size"),
    "scoring": ("tokens_per_micro_batch", "batch_size"),
    "log-probabilities": ("tokens_per_micro_batch", "batch_size"),
    "backward": ("tokens_per_micro_batch", "micro_batch_size"),
}
"""Beginning of a moment's name -> the settings that bound what it computes at once; the first that
a stage has does, or the second where that one is not set and the second is of a backward pass."""


@dataclass(frozen=True)
class Advice:
    """A change, the most memory that the stage then takes, in bytes, and whether that fits."""

    change: str
    memory: float
    fits: bool


@dataclass(frozen=True)
class _Try:
    """Settings to try: what was changed, as words, and how models are spread."""

    settings: StageSettings
    estimator: Estimator
    words: tuple[str, ...] = ()

    def with_settings(self, **changes: Any) -> _Try:
        words = tuple(f"{k}: {str(v).lower()}" for k, v in changes.items() if v is not None)
        settings = self.settings.model_copy(update=changes)
        return replace(self, settings=settings, words=(*self.words, *words))

    def sharded(self) -> _Try:
        estimator = replace(self.estimator, sharding="fsdp2")
        return replace(self, estimator=estimator, words=(*self.words, "--sharding fsdp2"))


def advise(
    estimate: Estimate, stage: str, settings: StageSettings, estimator: Estimator, cost: StageCost
) -> list[Advice]:
    """Return changes that make a stage fit, mild ones first; else what saves the most.

    Args:
        estimate: makes the estimate of this kind of stage.
        stage: its name.
        settings: as they are.
        estimator: what estimates are made with.
        cost: of the settings as they are, which does not fit.
    """
    start = _Try(settings, estimator)
    changes = _changes(start, cost)
    advices = [_shrunk(estimate, stage, attempt) for attempt in (start, *changes)]
    fitting = [advice for advice in advices if advice.fits]
    if not fitting and len(changes) > 1:
        everything = start
        for change in changes:
            everything = _merged(everything, change)
        advices.append(_shrunk(estimate, stage, everything))
        fitting = [advice for advice in advices if advice.fits]
    advices = [advice for advice in advices if advice.change]
    return fitting or sorted(advices, key=lambda advice: advice.memory)[:1]


def _changes(start: _Try, cost: StageCost) -> list[_Try]:
    """Return the changes beside smaller batches that a stage has."""
    settings, known = start.settings, type(start.settings).model_fields
    changes = []
    if getattr(settings, "gradient_checkpointing", None) is False:
        changes.append(start.with_settings(gradient_checkpointing=True))
    if start.estimator.sharding == "ddp" and cost.layout.processes > 1:
        changes.append(start.sharded())
    if "value_start" in known and getattr(settings, "value", None) == "separate":
        changes.append(start.with_settings(value="shared", value_start=None))
    if getattr(settings, "trunk", None) == "separate":
        alone = {"value_start": None, "reference": None}
        changes.append(start.with_settings(trunk="shared", value="shared", **alone))
    return changes


def _merged(first: _Try, second: _Try) -> _Try:
    changed = {
        name: getattr(second.settings, name)
        for name in type(second.settings).model_fields
        if getattr(second.settings, name) != getattr(first.settings, name)
        and name in " ".join(second.words)
    }
    merged = first.settings.model_copy(update=changed)
    estimator = second.estimator if second.estimator.sharding == "fsdp2" else first.estimator
    return _Try(merged, estimator, (*first.words, *second.words))


def _shrunk(estimate: Estimate, stage: str, attempt: _Try) -> Advice:
    """Halve what bounds the widest moment until the stage fits, or nothing is left to halve."""
    smaller: dict[str, int] = {}
    while True:
        cost = estimate(stage, attempt.settings, attempt.estimator)
        fits = cost.fits(attempt.estimator.cluster)
        knob = None if fits else _knob(attempt.settings, cost)
        if knob is None:
            words = [*attempt.words, *(f"{k}: {v}" for k, v in smaller.items())]
            return Advice(", ".join(words), cost.peak.total, fits)
        name, value = knob
        if name == "tokens_per_micro_batch":  # it takes the other's place
            smaller.pop("micro_batch_size", None)
        smaller[name] = value
        attempt = replace(attempt, settings=attempt.settings.model_copy(update={name: value}))


def _knob(settings: StageSettings, cost: StageCost) -> tuple[str, int] | None:
    """Return the setting that bounds the widest moment, and half its value; None at 1."""
    moment = next((start for start in KNOBS if cost.peak.name.startswith(start)), None)
    names = [n for n in KNOBS.get(moment or "", ()) if n in type(settings).model_fields]
    if not names:
        return None
    name = names[0]
    if "micro_batch_size" in names and getattr(settings, name) is None:
        name = "micro_batch_size"
    value = getattr(settings, name)
    if value is None and isinstance(settings, PpoSettings):
        value = settings.score_limit.rows * (settings.max_prompt_tokens + settings.max_new_tokens)
    elif value is None:
        value = max(1, -(-getattr(settings, "batch_size", 1) // cost.layout.processes))
    return (name, value // 2) if value > 1 else None
