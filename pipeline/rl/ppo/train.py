"""Runs the updates: logs, saves, and obeys the recipe when an alarm of the doctor rings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import Interrupted, TrainingError
from pipeline.contract.resume import ResumeStore
from pipeline.rl.health.best_policy import BestPolicy, alarm_lines, alarm_row
from pipeline.rl.health.doctor import START_CHECKS
from pipeline.rl.ppo.evaluation import FIGURES, HeldOut, Subject, evaluate
from pipeline.rl.ppo.loop import Ppo, is_due, load_ppo_state, run_update, save, write_state


@dataclass(frozen=True)
class Outlets:
    """Where a run tells what it does; each is called on every process.

    Attributes:
        log: takes the metrics of an update.
        write_samples: takes rows of samples.jsonl.
        write_alarms: takes rows of doctor.jsonl.
        write_evaluation: takes rows of evaluation.jsonl.
        say: takes a line for the reader.
        advance: called after each update.
        keep: called with the number of finished updates where the policy is the best one so far by
            the second judge of evaluations.
    """

    log: Callable[[int, Mapping[str, float]], None]
    write_samples: Callable[[list[Mapping[str, object]]], None]
    write_alarms: Callable[[list[Mapping[str, object]]], None]
    write_evaluation: Callable[[list[Mapping[str, object]]], None]
    say: Callable[[str], None]
    advance: Callable[[Mapping[str, float]], None]
    keep: Callable[[int], None]


def train(
    ppo: Ppo,
    *,
    states: ResumeStore,
    outlets: Outlets,
    should_stop: Callable[[], bool],
    held_out: HeldOut | None = None,
) -> dict[str, float]:
    """Run all updates that are left; return the metrics of the last one, or of the best.

    The policy is evaluated before its first update, each `evaluate_every` updates, and at the end.

    Args:
        ppo: the run, already restored if there was a resume state.
        states: where resume states go.
        outlets: where metrics, samples and alarms go.
        should_stop: whether to save and stop.
        held_out: what the policy is evaluated on; None where it is not.

    Raises:
        Interrupted: asked to stop; the state has been saved.
        TrainingError: a loss is not finite, an invariant does not hold, or an alarm rang and
            `doctor.on_alarm` is stop; the state has been saved then.
    """
    best = BestPolicy.of(states, ppo.hyper, drifts=ppo.rewards.drifts(ppo.hyper))
    if ppo.watch.ended_by and ppo.hyper.doctor.on_alarm == "best":  # killed before it was published
        _end_on_alarm(ppo, best, ppo.watch.ended_by, outlets)
        return ppo.metrics
    _evaluate_if_due(ppo, held_out, outlets)
    while ppo.update < ppo.hyper.updates:
        result = run_update(ppo, judge=lambda metrics: _keep_if_best(ppo, best, metrics))
        figures, begins = ppo.watch.observe(result.metrics)
        ppo.metrics = {**result.metrics, **figures}
        outlets.log(ppo.update, ppo.metrics)
        if result.samples:
            outlets.write_samples(result.samples)
        for line in alarm_lines(begins, update=ppo.update):
            outlets.say(line)
        if begins:
            outlets.write_alarms([alarm_row(n, r, update=ppo.update) for n, r in begins.items()])
        outlets.advance(ppo.metrics)
        ending = {name: finding for name, finding in begins.items() if name not in START_CHECKS}
        ends = bool(ending) and ppo.hyper.doctor.on_alarm != "warn"
        stop = should_stop()
        ppo.watch.ended_by = alarm_lines(ending, update=ppo.update) if ends else []
        if stop or ends or is_due(ppo, ppo.hyper.save_every):
            save(ppo, states)
        if ends:
            _end_on_alarm(ppo, best, ppo.watch.ended_by, outlets)
            break
        if stop and ppo.update < ppo.hyper.updates:
            raise Interrupted(f"PPO was asked to stop after update {ppo.update}")
        _evaluate_if_due(ppo, held_out, outlets)
    return {**ppo.metrics, **ppo.evaluation}


def _evaluate_if_due(ppo: Ppo, held_out: HeldOut | None, outlets: Outlets) -> None:
    """Evaluate the policy of now, unless a part of the run that was cut off has done so."""
    if held_out is None or ppo.evaluated == ppo.update or not is_due(ppo, ppo.hyper.evaluate_every):
        return
    figures, rows = evaluate(Subject.of(ppo), held_out)
    outlets.write_evaluation(rows)
    outlets.log(ppo.update, figures)
    ppo.evaluation, ppo.evaluated = figures, ppo.update
    if figures.get("evaluation/gold", -math.inf) > ppo.best_gold:
        ppo.best_gold = figures["evaluation/gold"]
        if ppo.update > 0:  # the start is where it was
            outlets.keep(ppo.update)
    told = ", ".join(
        f"{name.removeprefix('evaluation/')} {figures[name]:.3f}"
        for name in FIGURES
        if name in figures
    )
    outlets.say(f"after update {ppo.update}, {len(rows)} prompts kept apart: {told}")


def _keep_if_best(ppo: Ppo, best: BestPolicy, metrics: Mapping[str, float]) -> None:
    """Save the state of a policy that scores better than all before it, held out if it can be."""
    if ppo.hyper.evaluate_every:
        if ppo.evaluated != ppo.update:
            return
        metrics = {**metrics, **ppo.evaluation}
    if not best.is_better(metrics, update=ppo.update, ringing=ppo.watch.unwell):
        return

    def write(folder: Path) -> None:
        write_state(ppo, folder)
        if ppo.world.rank == 0:
            best.note(folder, metrics)

    best.store.save(ppo.update, write)
    best.keep(metrics)


def _end_on_alarm(ppo: Ppo, best: BestPolicy, lines: Sequence[str], outlets: Outlets) -> None:
    """Stop, or go back to the best policy.

    Raises:
        TrainingError: with the alarms, and how to go on.
    """
    rang = "; ".join(lines)
    if ppo.hyper.doctor.on_alarm == "stop":
        raise TrainingError(
            f"PPO stopped, its state is saved ({rang}); run again to go on nevertheless, change "
            "the setting to start PPO anew, or silence it with doctor.ignore"
        )
    state = best.find()
    if state is None:
        raise TrainingError(
            f"PPO has no policy to go back to, {best.store.folder} holds no whole state ({rang}); "
            "change the setting to start PPO anew"
        )
    update, folder, metrics = state
    figures = {k: v for k, v in ppo.metrics.items() if k.startswith("doctor/")}
    load_ppo_state(ppo, folder, update)
    ppo.metrics = {**metrics, **figures, "doctor/back_to_update": update}
    outlets.say(f"the run ends with the policy after update {update}, the best before the alarm")
