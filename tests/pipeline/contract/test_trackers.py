"""Metrics in TensorBoard, W&B and Trackio, read back from what they wrote."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sqlite3
import struct
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from data.errors import RecipeError, TrainingError
from pipeline.contract.console import Console
from pipeline.contract.context import StageContext
from pipeline.contract.kind import StageKind
from pipeline.contract.metrics_log import MetricsLog
from pipeline.contract.settings import StageSettings
from pipeline.contract.stop import StopFlag
from pipeline.contract.trackers import Trackers
from pipeline.recipe.load import load_recipe
from pipeline.run.execution import Run, make_context
from pipeline.run.runner import execute
from pipeline.run.unfinished import Attempt
from pipeline.stages.registry import STAGE_MODULES


class StepSettings(StageSettings):
    kind: Literal["step"] = "step"
    dies: bool = False
    text: str = "x"


class PowerCut(BaseException):
    """Ends a stage as SIGKILL does: nothing of ours is called after it."""


def write_state(folder: Path) -> None:
    (folder / "state").write_text("s")


def run_step(context: StageContext[StepSettings]) -> dict[str, Any]:
    latest = context.resume.latest()
    start = 0 if latest is None else latest[0]
    for step in range(start + 1, 7):
        context.metrics.log(step, {"train/loss": 1.0 / step, "note": "text"})
        if step % 3 == 0:
            context.metrics.log(step, {"eval/loss": 2.0 / step})
        if step == 5 and start == 0 and (context.folder.parent / "die").exists():
            context.metrics.close = lambda: None  # type: ignore[method-assign]
            raise PowerCut
        if step == 3:
            context.resume.save(step, write_state)
    return {"eval/loss": 0.5}


@pytest.fixture(autouse=True)
def step_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("step_stage")
    module.KIND = StageKind(  # type: ignore[attr-defined]
        name="step",
        settings=StepSettings,
        run=run_step,
        check=lambda settings, hand: None,
        provides=frozenset(),
        main_metric="eval/loss",
    )
    monkeypatch.setitem(sys.modules, "step_stage", module)
    monkeypatch.setitem(STAGE_MODULES, "step", "step_stage")
    monkeypatch.setattr("pipeline.run.runner._report", lambda *arguments: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text("trackers: [tensorboard]\nstages:\n  a: {kind: step}\n")
    return path


def go(path: Path, *overrides: str) -> None:
    execute(load_recipe(path, overrides), path.parent / "run", console=Console(quiet=True))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every value in every event file, by its name."""
    module = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events*")):
        for event in module.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                number = value.tensor.float_val[0]
                found.setdefault(value.tag, []).append((event.step, round(number, 6)))
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run: LevelDB's log format behind a header of 7 bytes."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, place, held = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no record begins so near to the end of a block
            place += left
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        held += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record.FromString(held)
            held = b""


def wandb_rows(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and numbers of each row that offline runs hold; they name one run."""
    rows, names = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        names.add(path.name)
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                told = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                numbers = {k: v for k, v in told.items() if not k.startswith("_")}
                rows.append((told["_step"], numbers))
    assert len(names) == 1
    return rows


def trackio_rows(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and numbers of each row of Trackio's one run, rows of a step put together."""
    (path,) = folder.glob("*.db")
    with sqlite3.connect(path) as database:
        found = database.execute("select run_name, step, metrics from metrics order by id")
        rows = found.fetchall()
    database.close()
    assert len({name for name, _, _ in rows}) == 1
    steps: dict[int, dict[str, float]] = {}
    for _, step, text in rows:
        told = json.loads(text)
        assert not set(told) & set(steps.get(step, {})), "sent twice"
        steps.setdefault(step, {}).update(told)
    return list(steps.items())


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_other_trackers_get_each_number_once_though_the_stage_was_killed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    pytest.importorskip(tracker, reason=f"{tracker} is not installed; pip install {tracker}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name, module in list(sys.modules.items()):  # it looked where to write as it was imported
        if name.startswith("trackio") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "die").touch()
    with pytest.raises(PowerCut):
        go(path, f"trackers=[{tracker}]")
    go(path, f"trackers=[{tracker}]")
    logs = tmp_path / "run" / "logs" / "a"
    rows = wandb_rows(logs) if tracker == "wandb" else trackio_rows(tmp_path / "trackio")
    expected = [{"train/loss": 1.0 / step} for step in range(1, 7)]
    for step in (3, 6):
        expected[step - 1]["eval/loss"] = 2.0 / step
    assert rows == list(enumerate(expected, start=1))


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(path: Path) -> None:
    go(path)
    run = path.parent / "run"
    found = scalars(run / "logs" / "a")
    assert found["train/loss"] == [(s, round(1 / s, 6)) for s in range(1, 7)]
    assert found["eval/loss"] == [(3, round(2 / 3, 6)), (6, round(2 / 6, 6))]
    assert set(found) == {"train/loss", "eval/loss"}
    manifest = json.loads((run / "a" / "manifest.json").read_text())
    assert not any("events" in name for name in manifest["files"])


def test_a_killed_stage_that_goes_on_sends_no_step_twice(path: Path) -> None:
    (path.parent / "run").mkdir()
    (path.parent / "run" / "die").touch()
    with pytest.raises(PowerCut):
        go(path)
    log = path.parent / "run" / "a" / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()][-1] == 5
    with log.open("a") as file:
        file.write('{"step": 6, "sec')  # killed while it wrote
    go(path)
    found = scalars(path.parent / "run" / "logs" / "a")
    assert Counter(step for step, _ in found["train/loss"]) == Counter(range(1, 7))
    assert [step for step, _ in found["eval/loss"]] == [3, 6]


def test_a_stage_that_starts_anew_leaves_no_steps_of_the_one_before(path: Path) -> None:
    go(path)
    go(path, "a.text=y")
    found = scalars(path.parent / "run" / "logs" / "a")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 7))


def test_trackers_change_no_result(path: Path) -> None:
    go(path, "trackers=[]")
    run = path.parent / "run"
    assert not (run / "logs").exists()
    before = (run / "a" / "manifest.json").stat().st_mtime_ns
    go(path)
    assert (run / "a" / "manifest.json").stat().st_mtime_ns == before


def test_only_the_main_process_logs(path: Path) -> None:
    recipe, run_folder = load_recipe(path), path.parent / "run"
    run = Run(recipe, run_folder, recipe.top.launch, Console(quiet=True), StopFlag())
    attempt = Attempt(run_folder / "a", "x")
    context = [make_context(run, attempt, rank=rank, world_size=2) for rank in (0, 1)]
    assert context[0].metrics.trackers is not None
    assert context[1].metrics.trackers is None and not context[1].metrics.enabled


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    with pytest.raises(RecipeError, match="wandb is not installed; `pip install wandb`"):
        go(path, "trackers=[tensorboard, wandb]")
    assert not (path.parent / "run" / "a").exists()


def test_an_unknown_tracker_is_refused(path: Path) -> None:
    with pytest.raises(RecipeError, match="trackers"):
        load_recipe(path, ["trackers=[tensorbored]"])


def test_a_tracker_that_can_not_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate.tracking

    def refuses(*arguments: object, **options: object) -> None:
        raise OSError("no such host")

    monkeypatch.setattr(accelerate.tracking.TensorBoardTracker, "start", refuses)
    trackers = Trackers(["tensorboard"], tmp_path / "logs" / "a", "r/a", {})
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=trackers)
    with pytest.raises(TrainingError, match=r"tensorboard can't be started \(OSError: no such"):
        log.log(1, {"train/loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_writes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = Trackers(["wandb"], tmp_path / "logs" / "a", "r/a", {"seed": 1})
    trackers.log(1, {"train/loss": 1.0})
    trackers.finish()
    assert list((tmp_path / "logs" / "a").rglob("*.wandb"))
