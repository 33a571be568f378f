"""Runs one stage, in this process or under `accelerate launch`, and publishes what it left."""

from __future__ import annotations

import logging
import platform
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import ArtifactError, Interrupted, RlhfError, StageFailedError, told
from data.storage import space_errors, storage_errors, write_atomically
from pipeline.contract.artifacts import MANIFEST, SCRATCH, Artifact, find, publish, verify
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
from pipeline.run.unfinished import KEY, Attempt, attempt_in, forget
from pipeline.run.worker_lifetime import ends_with_starter
from pipeline.training.malloc import give_back_memory

LOGS = ("metrics.jsonl", "samples.jsonl", "doctor.jsonl")


def run_stage(
    recipe: Recipe,
    stage: str,
    run: Path,
    *,
    key: Mapping[str, Any],
    digest: str,
    attempt: Attempt,
    launch: LaunchSettings,
    console: Console,
    stop: StopFlag,
    anew: bool = False,
) -> Artifact:
    """Run one stage to its end and publish its artifact.

    Args:
        recipe: the recipe.
        stage: the stage's name.
        run: the run folder; the parents' artifacts are there.
        key: all that the result follows from.
        digest: digest of the key.
        attempt: what it goes on with, or begins.
        launch: number of processes.
        console: where it speaks.
        stop: the stop flag.
        anew: clear its resume states first.

    Raises:
        Interrupted: a signal asked to stop.
        StageFailedError: the stage raised; its log is named.
    """
    folder, kind = run / stage, recipe.kind(stage)
    prepare_folder(folder, attempt, anew=anew)
    beside = _record(attempt, recipe, key)
    outcome = _carry_out(recipe, stage, run, attempt.digest, launch, console, stop)
    with storage_errors(folder):
        artifact = publish(
            folder,
            stage=stage,
            kind=kind.name,
            main_metric=kind.main_metric,
            key=digest,
            inputs=dict(key),
            beside=beside,
            parents=key["parents"],
            seed=recipe.seed(stage),
            **outcome,
        )
    # Only now: killed before it is published, the stage goes on from its last resume state.
    for scratch in SCRATCH:
        shutil.rmtree(folder / scratch, ignore_errors=True)
    forget(folder, keep=recipe.path)
    return artifact


def _record(attempt: Attempt, recipe: Recipe, key: Mapping[str, Any]) -> dict[str, Any]:
    """Note what an attempt is started with; return the settings beside its key."""
    from reward.functions import plugins

    beside = beside_result(recipe.stages[attempt.folder.name])
    facts = {"key": key, "beside": beside, "plugins": [str(p.path) for p in plugins()]}
    attempt.record(recipe.to_yaml(), facts)
    return beside


def _carry_out(
    recipe: Recipe,
    stage: str,
    run: Path,
    digest: str,
    launch: LaunchSettings,
    console: Console,
    stop: StopFlag,
) -> dict[str, Any]:
    """Run a stage, here or on many processes; return what its manifest tells of that."""
    processes = launch.processes if recipe.kind(stage).trains else 1
    log, started = run / stage / "stage.log", time.time()
    append(log, console.headline or f"{stage}: begins")
    if processes == 1:
        outcome = _run_here(recipe, stage, run, digest, console, stop)
    else:
        outcome = run_launched(stage, run, digest, launch, console=console, stop=stop)
    seconds = round(time.time() - started, 2)
    # Before it is published: the log, too, is a file that the manifest answers for.
    append(log, f"{stage}: done in {seconds:.1f} s")
    return {"processes": processes, "seconds": seconds, **outcome}


def prepare_folder(folder: Path, attempt: Attempt, *, anew: bool = False) -> None:
    """Make a stage's folder that of an attempt: as it left it, or empty where it begins anew.

    The manifest goes first: from then on the folder is no artifact. Unfinished work of another
    attempt is set aside.

    Raises:
        ArtifactError: the folder holds files that no stage left there.
        StorageError: it can't be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        finished = (folder / MANIFEST).exists()
        ours = finished or any((folder / name).exists() for name in ("work", "stage.log"))
        if not ours and any(folder.iterdir()):
            raise ArtifactError(
                f"{folder} holds files that no stage left there, and would be emptied; choose "
                "another folder with --out, or move them away"
            )
        (folder / MANIFEST).unlink(missing_ok=True)
        if not anew and _has_key(folder, attempt):
            if not (folder / "resume").is_dir():
                for log in LOGS:
                    (folder / log).unlink(missing_ok=True)
            return
        former = None if finished else attempt_in(folder)
        if former is not None and former.digest != attempt.digest:
            former.set_aside()
            folder.mkdir()
        if not anew and attempt.take_up():
            return
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / "work").mkdir()
        write_atomically(folder / "work" / KEY, attempt.digest)


def _has_key(folder: Path, attempt: Attempt) -> bool:
    path = folder / "work" / KEY
    return path.is_file() and path.read_text(encoding="utf-8") == attempt.digest


def make_context(
    recipe: Recipe,
    stage: str,
    run: Path,
    *,
    digest: str,
    console: Console,
    stop: StopFlag,
    rank: int = 0,
    world_size: int = 1,
) -> StageContext[Any]:
    """Build what a stage's `run` is given, its inputs verified.

    Raises:
        ArtifactError: an input is damaged.
    """
    folder = run / stage
    settings = recipe.stages[stage]
    inputs: dict[str, Artifact | str] = {}
    for field, (target, _) in references(settings).items():
        if is_external(target):
            inputs[field] = target
            continue
        artifact = find(run / target)
        assert artifact is not None, f"{target} was checked to be finished"
        inputs[field] = verify(artifact) if rank == 0 else artifact
    metrics = folder / "metrics.jsonl"
    resume = ResumeStore(
        folder / "resume",
        digest,
        tracked=[folder / log for log in LOGS],
        rank=rank,
        barrier=_barrier if world_size > 1 else lambda: None,
        say=lambda text: console.say(f"  {text}"),
    )
    return StageContext(
        name=stage,
        settings=settings,
        seed=recipe.seed(stage),
        folder=folder,
        inputs=inputs,
        hand=HandOver(stage, recipe.stages, lambda name: find(run / name), world_size),
        resume=resume,
        metrics=MetricsLog(
            metrics,
            enabled=rank == 0,
            trackers=_trackers(recipe, stage, run, metrics) if rank == 0 else None,
        ),
        console=console,
        stop=stop,
        rank=rank,
        world_size=world_size,
    )


def _trackers(recipe: Recipe, stage: str, run: Path, log: Path) -> Trackers | None:
    if not recipe.top.trackers:
        return None
    return Trackers.beside(
        log,
        recipe.top.trackers,
        folder=run / "logs" / stage,
        title=f"{recipe.name}/{stage}",
        config=recipe.stages[stage].model_dump(mode="json"),
    )


def _barrier() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def run_in_process(recipe: Recipe, context: StageContext[Any]) -> dict[str, Any]:
    """Run a stage in this process; return its metrics, peak memory and device."""
    from accelerate.utils import set_seed

    from pipeline.models.load import pick_device

    kind = recipe.kind(context.name)
    kind.check(context.settings, context.hand)
    give_back_memory()
    reset_peak_memory()
    set_seed(context.seed)
    try:
        with space_errors(context.folder):
            metrics = kind.run(context)
    finally:
        context.metrics.close()
    return {
        "metrics": metrics,
        "follows_from": sorted(context.follows_from),
        "peak_rss_mb": peak_memory_mb(),
        "device": _device_name(pick_device()),
    }


def _run_here(
    recipe: Recipe, stage: str, run: Path, digest: str, console: Console, stop: StopFlag
) -> dict[str, Any]:
    log = run / stage / "stage.log"
    with logged(log, console), _failures(stage, log, console):
        context = make_context(recipe, stage, run, digest=digest, console=console, stop=stop)
        return run_in_process(recipe, context)


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
            f"stage {stage} failed with {type(error).__name__}: {told(error)}; its log is "
            f"{log}, and the same command goes on there"
        ) from error


def _naming(stage: str, error: RlhfError) -> str:
    """Return an error's sentence, the stage named where it is not yet."""
    text = str(error)
    named = (f"stage {stage}", f"stages.{stage}")
    return text if any(name in text for name in named) else f"stage {stage}: {text}"


def run_as_rank(recipe: Recipe, stage: str, run: Path, digest: str, *, quiet: bool) -> None:
    """Body of the hidden command that `accelerate launch` starts on every rank."""
    with ends_with_starter(run):
        _run_as_rank(recipe, stage, run, digest, quiet=quiet)


def _run_as_rank(recipe: Recipe, stage: str, run: Path, digest: str, *, quiet: bool) -> None:
    from accelerate import PartialState

    from pipeline.training.accelerator import take_over_sharding

    take_over_sharding()
    state = PartialState(cpu=not _has_cuda())
    rank, size = state.process_index, state.num_processes
    folder = run / stage
    stop = StopFlag(file=folder / "work" / STOP, tells=False)
    console = Console(quiet=quiet, rank=rank)
    try:
        log = logged(folder / "stage.log", console, errors_only=rank != 0)
        with stop.installed(), log:
            context = make_context(
                recipe, stage, run, digest=digest, console=console, stop=stop,
                rank=rank, world_size=size,
            )  # fmt: skip
            outcome = run_in_process(recipe, context)
    except Interrupted as stopped:
        outcome = {"interrupted": str(stopped)}
        if rank == 0:
            append(folder / "stage.log", f"stopped: {stopped}")
    except RlhfError as error:
        append(folder / "stage.log", f"rank {rank}: {traceback.format_exc()}")
        write_result(folder, rank, {"error": _naming(stage, error)})
        raise
    if rank == 0:
        write_result(folder, rank, outcome)
    state.wait_for_everyone()
    state.destroy_process_group()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


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
