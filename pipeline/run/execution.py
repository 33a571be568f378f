"""Runs one stage, in this process or under `accelerate launch`, and publishes what it left."""

from __future__ import annotations

import logging
import platform
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data.errors import Interrupted, RlhfError, StageFailedError, in_words
from data.storage import space_errors, storage_errors
from pipeline.contract.artifacts import SCRATCH, Artifact, cache_of, find, publish, verify
from pipeline.contract.console import Console
from pipeline.contract.context import StageContext
from pipeline.contract.handover import HandOver
from pipeline.contract.metrics_log import MetricsLog
from pipeline.contract.resume import ResumeStore
from pipeline.contract.settings import LaunchSettings, beside_result, is_external, references
from pipeline.contract.stage_log import append, logged
from pipeline.contract.stop import StopFlag
from pipeline.contract.trackers import Trackers
from pipeline.recipe.load import Recipe
from pipeline.run.launching import STOP, run_launched, write_result
from pipeline.run.planning import key_digest
from pipeline.run.unfinished import LOGS, Attempt, prepare_folder, remove_unfinished
from pipeline.run.worker_lifetime import ends_with_starter
from pipeline.training.malloc import give_back_memory


@dataclass(frozen=True)
class Run:
    """One execution of a recipe: what all its stages are run with.

    Attributes:
        recipe: the recipe.
        folder: the run folder; what a stage reads of its parents is there.
        launch: number of processes.
        console: where it speaks.
        stop: set by a signal that asks to stop.
    """

    recipe: Recipe
    folder: Path
    launch: LaunchSettings
    console: Console
    stop: StopFlag


def run_stage(
    run: Run, attempt: Attempt, key: Mapping[str, Any], *, anew: bool = False
) -> Artifact:
    """Run one stage to its end and publish its artifact.

    Args:
        run: what it is run with.
        attempt: what it goes on with, or begins.
        key: all that the result follows from.
        anew: clear its resume states and its cache first.

    Raises:
        Interrupted: a signal asked to stop.
        StageFailedError: the stage raised; its log is named.
    """
    folder, kind = attempt.folder, run.recipe.kind(attempt.stage)
    prepare_folder(attempt, anew=anew)
    if anew:
        shutil.rmtree(cache_of(folder), ignore_errors=True)
    beside = _record(attempt, run.recipe, key)
    outcome = _carry_out(run, attempt)
    with storage_errors(folder):
        artifact = publish(
            folder,
            stage=attempt.stage,
            kind=kind.name,
            main_metric=kind.main_metric,
            key=key_digest(key),
            inputs=dict(key),
            beside=beside,
            parents=key["parents"],
            seed=run.recipe.seed(attempt.stage),
            **outcome,
        )
    # Only now: killed before it is published, the stage goes on from its last resume state.
    for scratch in SCRATCH:
        shutil.rmtree(folder / scratch, ignore_errors=True)
    remove_unfinished(folder, keep=run.recipe.path)
    return artifact


def _record(attempt: Attempt, recipe: Recipe, key: Mapping[str, Any]) -> dict[str, Any]:
    """Note what an attempt is started with; return the settings beside its key."""
    from reward.plugins import plugins

    beside = beside_result(recipe.stages[attempt.stage])
    facts = {"key": key, "beside": beside, "plugins": [str(p.path) for p in plugins()]}
    attempt.record(recipe.to_yaml(), facts)
    return beside


def _carry_out(run: Run, attempt: Attempt) -> dict[str, Any]:
    """Run a stage, here or on many processes; return what its manifest tells of that."""
    processes = run.launch.processes if run.recipe.kind(attempt.stage).trains else 1
    log, started = attempt.folder / "stage.log", time.time()
    append(log, run.console.headline or f"{attempt.stage}: begins")
    if processes == 1:
        outcome = _run_here(run, attempt)
    else:
        outcome = run_launched(attempt, run.launch, console=run.console, stop=run.stop)
    seconds = round(time.time() - started, 2)
    # Before it is published: the log, too, is a file that the manifest answers for.
    append(log, f"{attempt.stage}: done in {seconds:.1f} s")
    return {"processes": processes, "seconds": seconds, **outcome}


def make_context(
    run: Run, attempt: Attempt, *, rank: int = 0, world_size: int = 1
) -> StageContext[Any]:
    """Build what a stage's `run` is given, its inputs verified.

    Raises:
        ArtifactError: an input is damaged.
    """
    recipe, stage, folder = run.recipe, attempt.stage, attempt.folder
    settings = recipe.stages[stage]
    # While a stage runs, no other one's artifact changes.
    finished = cache(lambda name: find(run.folder / name))
    inputs: dict[str, Artifact | str] = {}
    for field, (target, _) in references(settings).items():
        if is_external(target):
            inputs[field] = target
            continue
        artifact = finished(target)
        assert artifact is not None, f"{target} was checked to be finished"
        inputs[field] = verify(artifact) if rank == 0 else artifact
    metrics = folder / "metrics.jsonl"
    resume = ResumeStore(
        folder / "resume",
        attempt.digest,
        tracked=[folder / log for log in LOGS],
        rank=rank,
        barrier=_barrier if world_size > 1 else lambda: None,
        say=lambda text: run.console.say(f"  {text}"),
    )
    return StageContext(
        name=stage,
        settings=settings,
        seed=recipe.seed(stage),
        folder=folder,
        inputs=inputs,
        hand=HandOver(stage, recipe.stages, finished, world_size),
        resume=resume,
        metrics=MetricsLog(
            metrics,
            enabled=rank == 0,
            trackers=_trackers(run, stage, metrics) if rank == 0 else None,
        ),
        console=run.console,
        stop=run.stop,
        rank=rank,
        world_size=world_size,
    )


def _trackers(run: Run, stage: str, log: Path) -> Trackers | None:
    recipe = run.recipe
    if not recipe.top.trackers:
        return None
    return Trackers.beside(
        log,
        recipe.top.trackers,
        folder=run.folder / "logs" / stage,
        title=f"{recipe.name}/{stage}",
        config=recipe.stages[stage].model_dump(mode="json"),
    )


def _barrier() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def run_in_process(recipe: Recipe, context: StageContext[Any]) -> dict[str, Any]:
    """Run a stage in this process; return its metrics, what it took, and its device."""
    from accelerate.utils import set_seed

    from pipeline.models.load import pick_device

    kind = recipe.kind(context.name)
    kind.check(context.settings, context.hand)
    give_back_memory()
    reset_peak_memory()
    set_seed(context.seed)
    before = time.process_time()
    try:
        with space_errors(context.folder):
            metrics = kind.run(context)
    finally:
        context.metrics.close()
    return {
        "metrics": metrics,
        "follows_from": sorted(context.follows_from),
        "processor_seconds": round(time.process_time() - before, 2),
        "peak_rss_mb": peak_memory_mb(),
        "device": _device_name(pick_device()),
    }


def _run_here(run: Run, attempt: Attempt) -> dict[str, Any]:
    log = attempt.folder / "stage.log"
    with logged(log, run.console), _failures(attempt.stage, log, run.console):
        return run_in_process(run.recipe, make_context(run, attempt))


@contextmanager
def _failures(stage: str, log: Path, console: Console) -> Iterator[None]:
    """Write a stage's failure into its log, and name stage and log in the error."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stopped:
        console.note(f"stopped: {str(stopped) or 'at once'}")
        raise
    except RlhfError as error:
        console.note(traceback.format_exc())
        raise type(error)(_naming(stage, error)) from error
    except Exception as error:
        console.note(traceback.format_exc())
        raise StageFailedError(
            f"stage {stage} failed with {type(error).__name__}: {in_words(error)}; its log is "
            f"{log}, and the same command goes on there"
        ) from error


def _naming(stage: str, error: RlhfError) -> str:
    """Return an error's sentence, the stage named where it is not yet."""
    text = str(error)
    named = (f"stage {stage}", f"stages.{stage}")
    return text if any(name in text for name in named) else f"stage {stage}: {text}"


def run_as_rank(recipe: Recipe, stage: str, folder: Path, digest: str, *, quiet: bool) -> None:
    """Body of the hidden command that `accelerate launch` starts on every rank.

    `digest` is of the attempt that the stage goes on with, or begins.
    """
    with ends_with_starter(folder):
        _run_as_rank(recipe, Attempt(folder / stage, digest), quiet=quiet)


def _run_as_rank(recipe: Recipe, attempt: Attempt, *, quiet: bool) -> None:
    from pipeline.training.accelerator import join_processes

    settings = recipe.stages[attempt.stage]
    state = join_processes(max_norm=getattr(settings, "max_gradient_norm", None))
    rank, folder = state.process_index, attempt.folder
    stop = StopFlag(file=folder / "work" / STOP, tells=False)
    console = Console(quiet=quiet, rank=rank)
    run = Run(recipe, folder.parent, recipe.top.launch, console, stop)
    try:
        log = logged(folder / "stage.log", console, errors_only=rank != 0)
        with stop.installed(), log:
            context = make_context(run, attempt, rank=rank, world_size=state.num_processes)
            outcome = run_in_process(recipe, context)
    except Interrupted as stopped:
        outcome = {"interrupted": str(stopped)}
        if rank == 0:
            append(folder / "stage.log", f"stopped: {stopped}")
    except RlhfError as error:
        append(folder / "stage.log", f"rank {rank}: {traceback.format_exc()}")
        write_result(folder, rank, {"error": _naming(attempt.stage, error)})
        raise
    if rank == 0:
        write_result(folder, rank, outcome)
    state.wait_for_everyone()
    state.destroy_process_group()


# psutil, too, tells what Linux uses now, no peak, and sets none back.
def reset_peak_memory() -> None:
    """Set this process's peak memory back to what it uses now, where Linux lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.getLogger(__name__).debug("peak memory counts from the start of the process")


def peak_memory_mb() -> int:
    """Return the peak resident memory of this process, in MB of 10^6 bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6)
    except OSError:
        logging.getLogger(__name__).debug("no /proc; peak memory is the whole process's")
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def _device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({torch.get_num_threads()} threads)"
