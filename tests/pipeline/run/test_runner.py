"""The runner, from the user's side, with stages that count how often they run."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from typer.testing import CliRunner

import data.storage
import pipeline.run.runner
from data.errors import (
    ArtifactError,
    HandOverError,
    Interrupted,
    RunLockedError,
    SourceError,
    StageFailedError,
    StorageError,
    UsageError,
)
from pipeline.cli.main import app
from pipeline.contract.console import Console
from pipeline.contract.context import StageContext
from pipeline.contract.kind import StageKind
from pipeline.contract.settings import Ref, SourceSettings, StageSettings
from pipeline.recipe.load import Recipe, load_recipe
from pipeline.run.listing import list_run
from pipeline.run.planning import Planner, Selection
from pipeline.run.runner import execute, plan
from pipeline.stages.registry import STAGE_MODULES

QUIET = Console(quiet=True)
real_report = pipeline.run.runner._report


class CountSettings(StageSettings):
    kind: Literal["count"] = "count"
    after: Annotated[str, Ref("policy")] | None = None
    text: str = "x"
    source: SourceSettings | None = None
    fail: Literal["", "bug", "hand-over", "signal"] = ""


RUNS: list[str] = []


DURING: dict[str, Callable[[], object]] = {}
"""What happens while a stage runs, by its name."""


def write_state(folder: Path) -> None:
    (folder / "state").write_text("s")


def run_count(context: StageContext[CountSettings]) -> dict[str, Any]:
    settings = context.settings
    latest = context.resume.latest()
    start = 0 if latest is None else latest[0]
    RUNS.append(f"{context.name}@{start}")
    context.say(f"goes on after {start}\nin two lines")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("a word of warning", stacklevel=1)
    logging.getLogger("transformers.models").warning("of a library that keeps to itself")
    for step in range(start + 1, 4):
        context.metrics.log(step, {"train/loss": 1.0 / step})
        context.resume.save(step, write_state)
        if settings.fail == "signal" and step == 2 and start == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        if context.should_stop():
            raise Interrupted("stopped")
    if settings.fail == "bug":
        raise KeyError("no such thing")
    before = ""
    if settings.after:
        before = (Path(context.input("after")) / "out.txt").read_text()
    if context.name in DURING:
        DURING[context.name]()
    (context.folder / "model").mkdir(exist_ok=True)
    (context.folder / "model" / "out.txt").write_text(before + settings.text.strip())
    return {"eval/loss": 0.5}


def check_count(settings: CountSettings, hand: Any) -> None:
    if settings.fail == "hand-over":
        raise HandOverError(f"stage {hand.name}: a does not fit b")


@pytest.fixture(autouse=True)
def count_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("count_stage")
    module.KIND = StageKind(  # type: ignore[attr-defined]
        name="count",
        settings=CountSettings,
        run=run_count,
        check=check_count,
        provides=frozenset({"policy"}),
        main_metric="eval/loss",
    )
    monkeypatch.setitem(sys.modules, "count_stage", module)
    monkeypatch.setitem(STAGE_MODULES, "count", "count_stage")
    monkeypatch.setattr("pipeline.run.runner._report", lambda *arguments: None)
    RUNS.clear()
    yield


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "three.yaml"
    path.write_text(
        "stages:\n"
        "  a: {kind: count}\n"
        "  b: {kind: count, after: a, text: y}\n"
        "  c: {kind: count, after: b, text: z}\n"
    )
    return path


def go(path: Path, *overrides: str, **selection: Any) -> Recipe:
    recipe = load_recipe(path, overrides)
    execute(recipe, path.parent / "run", selection=Selection(**selection), console=QUIET)
    return recipe


def test_stages_run_once_and_pass_files_on(recipe_file: Path) -> None:
    go(recipe_file)
    go(recipe_file)
    assert RUNS == ["a@0", "b@0", "c@0"]
    assert (recipe_file.parent / "run/c/model/out.txt").read_text() == "xyz"
    assert not (recipe_file.parent / "run/c/resume").exists()


def test_a_changed_setting_runs_the_stage_and_what_hangs_on_it(recipe_file: Path) -> None:
    go(recipe_file)
    recipe = load_recipe(recipe_file, ["b.text=w"])
    steps = plan(Planner(recipe, recipe_file.parent / "run"))
    assert [(s.stage, s.action) for s in steps] == [
        ("a", "up to date"),
        ("b", "run"),
        ("c", "run"),
    ]
    assert steps[1].reason == "text: 'y' -> 'w'"
    assert steps[2].reason == "b runs before it"
    RUNS.clear()
    go(recipe_file, "b.text=w")
    assert RUNS == ["b@0", "c@0"]


def test_a_parent_that_gives_the_same_again_leaves_its_children(recipe_file: Path) -> None:
    go(recipe_file)
    RUNS.clear()
    go(recipe_file, "b.text='y '")
    assert RUNS == ["b@0"]


def other(path: Path, *overrides: str, reuse: bool = True, **selection: Any) -> Path:
    """Run the recipe into another folder, with what the first one has done."""
    run = path.parent / "other"
    execute(
        load_recipe(path, overrides),
        run,
        selection=Selection(**selection),
        reuse=[path.parent / "run"] if reuse else (),
        console=QUIET,
    )
    return run


def test_another_runs_stages_of_equal_keys_are_taken_over(recipe_file: Path) -> None:
    go(recipe_file)
    RUNS.clear()
    run, first = other(recipe_file, "c.text=w"), recipe_file.parent / "run"
    assert RUNS == ["c@0"]
    assert (run / "c/model/out.txt").read_text() == "xyw"
    for stage, links in (("a", 2), ("b", 2), ("c", 1)):
        assert (run / stage / "model" / "out.txt").stat().st_nlink == links
    assert [row[2] for row in list_run(run)] == ["done"] * 3
    # What changes here changes nothing there; nor is anything left to do here.
    other(recipe_file, "b.text=v", "c.text=w", reuse=False)
    other(recipe_file, "b.text=v", "c.text=w", reuse=False)
    assert RUNS == ["c@0", "b@0", "c@0"]
    assert (first / "b/model/out.txt").read_text() == "xy"
    assert [row[2] for row in list_run(first)] == ["done"] * 3


def test_what_is_taken_over_is_copied_where_no_link_can_be(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe_file)
    RUNS.clear()

    def other_disk(*places: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    run = other(recipe_file)
    assert RUNS == []
    assert (run / "c/model/out.txt").read_text() == "xyz"
    assert (run / "c/model/out.txt").stat().st_nlink == 1
    assert [row[2] for row in list_run(run)] == ["done"] * 3


def test_taking_over_that_was_cut_off_leaves_the_other_run_alone(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe_file)
    link = os.link

    def killed(source: Path, place: Path) -> None:
        link(source, place)
        if place.name == "out.txt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            other(recipe_file)
    there = recipe_file.parent / "run/a/model/out.txt"
    assert there.stat().st_nlink == 2
    RUNS.clear()
    other(recipe_file, reuse=False, until="a")
    assert RUNS == ["a@0"]
    assert there.stat().st_nlink == 1


@pytest.mark.parametrize("gone", ["a/manifest.json", "a/model/out.txt"])
def test_a_stage_that_begins_anew_while_it_is_taken_over_is_refused(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    go(recipe_file)
    link = os.link

    def begun(source: Path, place: Path) -> None:
        (recipe_file.parent / "run" / gone).unlink(missing_ok=True)
        link(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", begun)
        with pytest.raises(ArtifactError, match="run/a changed while it was taken over"):
            other(recipe_file)
    assert not (recipe_file.parent / "other/a/manifest.json").exists()
    RUNS.clear()
    other(recipe_file, reuse=False, until="a")
    assert RUNS == ["a@0"]


def test_a_run_from_a_stage_on_takes_over_what_it_needs(recipe_file: Path) -> None:
    go(recipe_file, until="b")
    RUNS.clear()
    recipe = load_recipe(recipe_file, ["c.text=w"])
    planner = Planner(recipe, recipe_file.parent / "other", reuse=[recipe_file.parent / "run"])
    assert [(step.stage, step.action) for step in plan(planner)] == [
        ("a", "reuse"),
        ("b", "reuse"),
        ("c", "run"),
    ]
    assert not planner.folder.exists()
    run = other(recipe_file, "c.text=w", start="c")
    assert RUNS == ["c@0"]
    assert [row[2] for row in list_run(run)] == ["done"] * 3
    changed = load_recipe(recipe_file, ["b.text=v"])
    with pytest.raises(ArtifactError, match="stage b has not finished"):
        plan(Planner(changed, recipe_file.parent / "third", Selection(start="c"), [run]))


def test_damage_of_another_runs_stage_is_told(recipe_file: Path) -> None:
    go(recipe_file)
    (recipe_file.parent / "run/a/model/out.txt").write_text("edited")
    with pytest.raises(ArtifactError, match=r"run/a/model/out\.txt is damaged"):
        other(recipe_file)


def test_a_changed_source_file_runs_its_stage(recipe_file: Path, rows: Path) -> None:
    override = f"c.source={{path: {rows}}}"
    go(recipe_file, override)
    RUNS.clear()
    rows.write_text("two\n")
    go(recipe_file, override)
    assert RUNS == ["c@0"]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the files that were read to be hashed, as it grows."""
    paths: list[str] = []
    honest = hashlib.file_digest

    def digest(file: Any, kind: str) -> Any:
        paths.append(str(file.name))
        return honest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return paths


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Return a source that was there long before the run."""
    path = tmp_path / "rows.txt"
    path.write_text("one\n")
    os.utime(path, (1, 1))
    return path


def test_a_source_of_two_stages_is_hashed_once_a_run(
    recipe_file: Path, rows: Path, hashed: list[str]
) -> None:
    options = [f"{stage}.source={{path: {rows}}}" for stage in ("b", "c")]
    go(recipe_file, *options)
    assert RUNS == ["a@0", "b@0", "c@0"]
    assert hashed.count(str(rows)) == 1


def test_an_up_to_date_run_hashes_each_file_of_each_artifact_once(
    recipe_file: Path, hashed: list[str]
) -> None:
    go(recipe_file)
    data.storage._known_sha256.cache_clear()  # as in another process
    hashed.clear()
    go(recipe_file)
    names = ("metrics.jsonl", "model/out.txt", "stage.log")
    files = [str(recipe_file.parent / "run" / stage / name) for stage in "abc" for name in names]
    assert sorted(hashed) == files


def test_a_source_that_changes_while_an_earlier_stage_runs_counts_as_it_is_then(
    recipe_file: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = f"c.source={{path: {rows}}}"
    go(recipe_file, option)
    monkeypatch.setitem(DURING, "b", lambda: rows.write_text("two\n"))
    RUNS.clear()
    go(recipe_file, option, "b.text='y '")  # b leaves what it left before
    assert RUNS == ["b@0", "c@0"]
    go(recipe_file, option, "b.text='y '")
    assert RUNS == ["b@0", "c@0"]


def test_an_artifact_that_is_edited_while_another_stage_runs_is_refused(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe_file.parent / "run/a/model/out.txt"
    monkeypatch.setitem(DURING, "b", lambda: path.write_text("q"))
    with pytest.raises(ArtifactError, match=r"a/model/out\.txt is damaged"):
        go(recipe_file, "c.after=a")
    assert RUNS == ["a@0", "b@0"]


def test_a_missing_source_is_told_before_anything_runs(recipe_file: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.jsonl"):
        go(recipe_file, "c.source={path: ./nothing.jsonl}")
    assert RUNS == []


def test_dry_run_writes_nothing(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    steps = plan(Planner(recipe, recipe_file.parent / "run"))
    assert {s.action for s in steps} == {"run"}
    assert not (recipe_file.parent / "run").exists()


def test_until_from_only_and_force(recipe_file: Path) -> None:
    go(recipe_file, until="b")
    assert RUNS == ["a@0", "b@0"]
    RUNS.clear()
    go(recipe_file, start="c")
    assert RUNS == ["c@0"]
    RUNS.clear()
    go(recipe_file, only="b", force=True)
    assert RUNS == ["b@0"]


def test_force_clears_the_states_of_what_was_cut_off(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.a.fail=signal"])
    run = recipe_file.parent / "run"
    with pytest.raises(Interrupted):
        execute(recipe, run, console=QUIET)
    with pytest.raises(Interrupted):  # it is cut off again after the same step
        execute(recipe, run, console=QUIET, selection=Selection(force=True))
    execute(recipe, run, console=QUIET)
    assert RUNS[:3] == ["a@0", "a@0", "a@2"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"start": "d"}, "no such stage"),
        ({"only": "a", "until": "b"}, "neither"),
        ({"start": "c", "until": "a"}, "comes after"),
    ],
)
def test_a_selection_that_makes_no_sense_is_told(
    recipe_file: Path, selection: dict[str, str], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        go(recipe_file, **selection)


def test_only_a_stage_whose_parent_never_ran_is_refused(recipe_file: Path) -> None:
    with pytest.raises(ArtifactError, match="b has not finished"):
        go(recipe_file, only="c")


def test_a_failed_stage_names_its_log_and_the_next_run_goes_on_there(recipe_file: Path) -> None:
    with pytest.raises(StageFailedError, match=r"stage b failed with KeyError.*stage\.log"):
        go(recipe_file, "b.fail=bug")
    assert "KeyError" in (recipe_file.parent / "run/b/stage.log").read_text()
    RUNS.clear()
    go(recipe_file)
    assert RUNS == ["b@0", "c@0"]


def test_a_hand_over_that_does_not_fit_stops_before_anything_runs(recipe_file: Path) -> None:
    with pytest.raises(HandOverError, match="stage c: a does not fit b"):
        go(recipe_file, "c.fail=hand-over")
    assert RUNS == []


def test_sigterm_saves_and_the_next_run_resumes(recipe_file: Path) -> None:
    with pytest.raises(Interrupted):
        go(recipe_file, "a.fail=signal")
    rows = list_run(recipe_file.parent / "run")
    assert rows[0][2] == "cut off, resumes at step 2"
    recipe = load_recipe(recipe_file, ["a.fail=signal"])
    assert plan(Planner(recipe, recipe_file.parent / "run"))[0].action == "resume"
    go(recipe_file, "a.fail=signal")
    assert RUNS == ["a@0", "a@2", "b@0", "c@0"]
    lines = (recipe_file.parent / "run/a/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_changed_setting_sets_the_resume_state_aside(recipe_file: Path) -> None:
    with pytest.raises(Interrupted):
        go(recipe_file, "a.fail=signal")
    RUNS.clear()
    with pytest.raises(StageFailedError):
        go(recipe_file, "a.fail=bug")
    with pytest.raises(Interrupted):
        go(recipe_file, "a.text=q", "a.fail=signal")
    assert RUNS == ["a@0", "a@0"]
    # Two states wait, each for its own settings.
    assert len([p for p in (recipe_file.parent / "run/.unfinished/a").iterdir() if p.is_dir()]) == 2
    go(recipe_file, "a.fail=signal", until="a")
    assert RUNS[2:] == ["a@2"]
    assert not (recipe_file.parent / "run/.unfinished").exists()
    assert (recipe_file.parent / "run/a/model/out.txt").read_text() == "x"


def test_a_damaged_parent_is_refused_by_name(recipe_file: Path) -> None:
    go(recipe_file)
    path = recipe_file.parent / "run/a/model/out.txt"
    path.write_text("q")
    with pytest.raises(ArtifactError, match=r"out\.txt is damaged"):
        go(recipe_file, "b.text=w")
    assert list_run(recipe_file.parent / "run")[0][2].startswith("damaged")


def test_two_runs_on_one_folder_exclude_each_other(recipe_file: Path) -> None:
    run = recipe_file.parent / "run"
    run.mkdir()
    with (run / ".lock").open("w") as file:
        file.write("process 1")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunLockedError, match="in use by process 1"):
            go(recipe_file)
    assert RUNS == []


def test_another_recipes_folder_is_refused(recipe_file: Path) -> None:
    go(recipe_file)
    with pytest.raises(ArtifactError, match="holds a run of the recipe 'three'"):
        go(recipe_file, "name=four")


def test_a_folder_of_another_version_is_refused(recipe_file: Path) -> None:
    go(recipe_file)
    path = recipe_file.parent / "run/a/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ArtifactError, match="has format 99"):
        go(recipe_file)


def test_a_folder_that_cannot_be_made_is_told(recipe_file: Path) -> None:
    (recipe_file.parent / "run").write_text("a file stands where the folder should be")
    with pytest.raises(StorageError, match=r"run is a file, no folder; choose another with --out"):
        go(recipe_file)


def test_a_folder_without_permission_is_told(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        go(recipe_file)


def test_listing_shows_state_parents_and_metric(recipe_file: Path) -> None:
    go(recipe_file, until="b")
    rows = list_run(recipe_file.parent / "run")
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert [row[2] for row in rows] == ["done", "done", "not run"]
    assert rows[1][5] == "a" and rows[1][6] == "eval/loss 0.5"


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no run folder"):
        list_run(tmp_path)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.runner._report", real_report)


def report_of(recipe_file: Path) -> dict[str, Any]:
    folder = recipe_file.parent / "run" / "report"
    content = json.loads((folder / "report.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.usefixtures("reports")
def test_a_stage_whose_parent_ran_since_is_outdated_in_the_report(recipe_file: Path) -> None:
    go(recipe_file)
    assert report_of(recipe_file)["not_done"] == {}
    go(recipe_file, "a.text=w", only="a")
    assert report_of(recipe_file)["not_done"] == {
        "b": "outdated: stage a changed",
        "c": "outdated: b runs before it",
    }
    go(recipe_file, "a.text=w")
    assert report_of(recipe_file)["not_done"] == {}


@pytest.mark.usefixtures("reports")
def test_a_part_of_a_run_has_a_report_of_what_is_there(recipe_file: Path) -> None:
    go(recipe_file, until="a")
    report = report_of(recipe_file)
    assert (list(report["stages"]), report["not_done"]) == (
        ["a"],
        {"b": "not run", "c": "not run"},
    )


@pytest.mark.usefixtures("reports")
def test_a_run_that_stops_leaves_a_report_of_what_is_there(recipe_file: Path) -> None:
    with pytest.raises(Interrupted):
        go(recipe_file, "b.fail=signal")
    assert report_of(recipe_file)["not_done"] == {
        "b": "cut off, resumes at step 2",
        "c": "not run",
    }
    with pytest.raises(StageFailedError):
        go(recipe_file, "b.fail=bug")
    report = report_of(recipe_file)
    assert report["not_done"]["b"] == "cut off, resumes at step 3"
    assert "made_before" not in report
    go(recipe_file)
    assert report_of(recipe_file)["not_done"] == {}


@pytest.mark.usefixtures("reports")
def test_a_report_from_before_a_killed_run_says_so(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe_file)

    def killed(context: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.execution.run_in_process", lambda *arguments: killed(None))
        with pytest.raises(KeyboardInterrupt):
            go(recipe_file, "c.text=w")
    page = recipe_file.parent / "run" / "report" / "index.html"
    assert "Stage c was begun after this report was made" in page.read_text()
    assert "Stage c was begun" in report_of(recipe_file)["made_before"]
    go(recipe_file, "c.text=w")
    assert "was begun after" not in page.read_text()


@pytest.mark.usefixtures("reports")
def test_a_report_that_was_not_made_after_the_last_stage_is_made_by_the_next_run(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe_file)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.runner._report", lambda *arguments: None)
        go(recipe_file, "c.text=w")
    go(recipe_file, "c.text=w")
    report = report_of(recipe_file)
    manifest = json.loads((recipe_file.parent / "run/c/manifest.json").read_text())
    assert report["stages"]["c"]["digest"] == manifest["digest"]
    assert "made_before" not in report


def seeds(*words: str) -> Any:
    return CliRunner().invoke(app, ["run", "three.yaml", "--out", "all", *words, "--quiet"])


@pytest.mark.usefixtures("reports")
def test_seeds_share_the_stages_before_the_first_that_differs(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe_file.parent)
    planned = seeds("--seeds", "3-4", "--from", "c", "--dry-run").stdout.splitlines()
    assert planned[0] == "3/a: run (has not run yet)"
    assert planned[3:] == [
        "4/a: reuse (of all/3, which runs before)",
        "4/b: reuse (of all/3, which runs before)",
        "4/c: run (b runs before it)",
    ]
    done = seeds("--seeds", "3-4,9", "--from", "c")
    assert done.stdout == "All seeds: all/index.html\n"
    assert RUNS == ["a@0", "b@0", "c@0", "c@0", "c@0"]
    assert [Path("all", seed, "b/model/out.txt").stat().st_nlink for seed in "349"] == [3] * 3
    told = json.loads(Path("all/report.json").read_text())
    assert {name: run["seed"] for name, run in told["runs"].items()} == {"3": 3, "4": 4, "9": 9}
    assert [row["figure"] for row in told["figures"]] == [f"{s}: eval/loss" for s in "abc"]
    assert told["figures"][2]["values"] == [0.5] * 3
    assert told["shared"] and told["figures"][2]["ci95_over_seeds"] is None  # as it is in all
    assert json.loads(Path("all/9/c/manifest.json").read_text())["seed"] == 9
    RUNS.clear()
    assert seeds("--seeds", "3-4,9", "--from", "c").exit_code == 0
    assert RUNS == []


@pytest.mark.usefixtures("reports")
def test_of_seeds_what_draws_nothing_is_made_once(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe_file.parent)
    planned = seeds("--seeds", "0,1", "--dry-run").stdout.splitlines()
    assert planned[0] == "0/a: run (has not run yet)" and len(planned) == 6
    assert not Path("all").exists()
    kind = dataclasses.replace(sys.modules["count_stage"].KIND, seeded=False)
    monkeypatch.setattr(sys.modules["count_stage"], "KIND", kind)
    seeds("--seeds", "0,1", "--until", "b")
    assert RUNS == ["a@0", "b@0"]
    monkeypatch.setattr(sys.modules["count_stage"], "KIND", dataclasses.replace(kind, seeded=True))
    RUNS.clear()
    seeds("--seeds", "0,1")
    assert RUNS == ["c@0", "a@0", "b@0", "c@0"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["4-2"], "4-2 is no range of at most 100 seeds"),
        (["0-1000"], "0-1000 is no range"),
        (["first"], "'first' names no seeds; write 0-4 or 0,3,7"),
        (["0,"], "'' names no seeds"),
        (["0-1", "--only", "c"], "--seeds does not go with --only"),
        (["0-1", "--seed", "0", "--force"], "--seeds does not go with --seed and --force"),
        (["0-1", "--set", "seed=3"], "--seeds does not go with --set seed=3; give one"),
        (["0-1", "--from", "d"], "--from d: three.yaml has no such stage"),
    ],
)
def test_seeds_that_can_not_be_are_refused(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    monkeypatch.chdir(recipe_file.parent)
    refused = seeds("--seeds", *words)
    assert isinstance(refused.exception, UsageError) and why in str(refused.exception)
    assert RUNS == []


def test_listing_names_the_process_that_runs_a_stage(recipe_file: Path) -> None:
    run, seen = recipe_file.parent / "run", []

    def look(context: Any) -> dict[str, Any]:
        seen.append({row[0]: row[2] for row in list_run(run)})
        return {"eval/loss": 0.0}

    kind = sys.modules["count_stage"].KIND
    go(recipe_file, until="a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["count_stage"], "KIND", dataclasses.replace(kind, run=look))
        go(recipe_file, until="b")
    assert seen == [{"a": "done", "b": f"running, process {os.getpid()}", "c": "not run"}]
    assert "running" not in str(list_run(run))


def test_listing_tells_how_far_a_stage_at_work_is(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = recipe_file.parent / "run", []
    monkeypatch.setattr("pipeline.contract.console.PLAIN_SECONDS", 0)

    def count(context: Any) -> dict[str, Any]:
        with context.progress(30, "a: counting") as bar:
            seen.append(list_run(run)[0][2])
            bar.advance(12, loss=0.5)
            seen.append(list_run(run)[0][2])
        context.console.say("  something else")
        with context.progress(None, "reading", unit="texts") as bar:
            bar.advance(7)
            seen.append(list_run(run)[0][2])
        raise Interrupted("stopped")

    kind = sys.modules["count_stage"].KIND
    monkeypatch.setattr(sys.modules["count_stage"], "KIND", dataclasses.replace(kind, run=count))
    process = f"process {os.getpid()}"
    told = [f"running, {process}", f"running, 12/30, 0 s left, {process}", f"running, 7, {process}"]
    for _ in range(2):  # begun again, what it had counted before is no progress
        with pytest.raises(Interrupted):
            go(recipe_file, until="a")
    assert seen == told * 2


@pytest.mark.usefixtures("reports")
def test_watching_shows_what_the_stage_at_work_has_logged(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, shown = recipe_file.parent / "run", []

    def watched(*words: str) -> str:
        return CliRunner().invoke(app, ["watch", str(run), *words], catch_exceptions=False).stdout

    def write(name: str, *rows: dict[str, Any], rest: str = "") -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (run / "b" / name).write_text(lines + rest)

    def seen() -> None:
        told = {"update": 2, "alarm": "kl", "told": "KL of 9\x1b[2J", "threshold": 5}
        write("doctor.jsonl", {**told, "cause": "a high rate", "remedy": "a lower one"})
        asked = [{"role": "user", "content": "Why?"}]
        write("samples.jsonl", *({"prompt": asked, "response": f"So {i}.", "score": i / 4}
                                 for i in range(5)), rest='{"prompt": ')  # fmt: skip
        shown.append(watched("--html"))
        for damaged in ("{\n", "[1]\n", '{"response": "So."}\n'):
            write("samples.jsonl", rest=damaged)
            with pytest.raises(ArtifactError, match=r"b/samples.jsonl is damaged"):
                watched()

    monkeypatch.setitem(DURING, "b", seen)
    go(recipe_file, until="b")
    (text,) = shown
    assert text.splitlines()[:3] == [
        "a\tcount\tdone",
        f"b\tcount\trunning, process {os.getpid()}",
        "c\tcount\tnot run",
    ]
    assert "Loss, training 0.333" in text
    assert "alarm at update 2: KL of 9" in text and "\x1b" not in text
    assert "So 1." not in text and text.endswith("> Why?\n  So 4. (1.00)\n")
    assert watched().splitlines()[1:] == ["b\tcount\tdone", "c\tcount\tnot run", "",
                                          "no process works in it"]  # fmt: skip


@pytest.mark.usefixtures("reports")
def test_the_report_of_a_run_at_work_says_so(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = recipe_file.parent / "run", []

    def seen() -> None:
        CliRunner().invoke(app, ["watch", str(run), "--html"], catch_exceptions=False)
        told.append(report_of(recipe_file))

    monkeypatch.setitem(DURING, "c", seen)
    go(recipe_file)
    states = {"c": f"running, process {os.getpid()}"}
    assert told[0]["not_done"] == states and [*told[0]["stages"]] == ["a", "b"]
    assert report_of(recipe_file)["not_done"] == {}


def test_a_process_that_was_killed_is_not_running(recipe_file: Path) -> None:
    with pytest.raises(Interrupted):
        go(recipe_file, "b.fail=signal")
    # The file still names the process that held it.
    lock = recipe_file.parent / "run" / ".lock"
    assert lock.read_text() == f"process {os.getpid()}, at stage b"
    states = {row[0]: row[2] for row in list_run(recipe_file.parent / "run")}
    assert states["b"] == "cut off, resumes at step 2"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        states = {row[0]: row[2] for row in list_run(recipe_file.parent / "run")}
    assert states["b"] == f"running, process {os.getpid()}"


@pytest.mark.usefixtures("library_logger")
def test_the_log_of_a_stage_holds_what_it_said_with_times(recipe_file: Path) -> None:
    with pytest.raises(Interrupted):
        go(recipe_file, "b.fail=signal")
    log = recipe_file.parent / "run" / "b" / "stage.log"
    first = log.read_text()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line) for line in lines(first))
    told = [line[24:] for line in lines(first)]
    assert told[:3] == ["b (count): has not run yet", "  goes on after 0", "in two lines"]
    assert sum("UserWarning: a word of warning" in line for line in told) == 1
    assert told[-2:] == [
        "WARNING transformers.models: of a library that keeps to itself",
        "stopped: stopped",
    ]


def test_a_stage_that_goes_on_writes_behind_its_log(recipe_file: Path) -> None:
    for _ in range(2):
        with pytest.raises(StageFailedError):
            go(recipe_file, "a.fail=bug")
    log = (recipe_file.parent / "run" / "a" / "stage.log").read_text()
    said = [line[24:] for line in lines(log)]
    assert [line for line in said if "goes on after" in line] == [
        "  goes on after 0",
        "  goes on after 3",
    ]
    assert said.count("KeyError: 'no such thing'") == 2
    assert said.count("Traceback (most recent call last):") == 2
    go(recipe_file)
    kept = recipe_file.parent / "run" / "a" / "stage.log"
    assert re.fullmatch(r"a: done in \d+\.\d s", lines(kept.read_text())[-1][24:])


def lines(text: str) -> list[str]:
    return text.splitlines()


@pytest.fixture
def library_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the records of a library from the root logger, as transformers does."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", False)
