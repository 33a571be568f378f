"""Run folders that were edited, cut, or filled by somebody else."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.console import Console
from pipeline.recipe.load import load_recipe
from pipeline.run.runner import execute

RECIPE = """
name: small
stages:
  one: {kind: tokenizer, train: [{path: text.txt}], vocab_size: 300}
  two: {kind: tokenizer, train: [{path: text.txt}], vocab_size: 310}
"""
DEEP = "[" * 100_000 + "]" * 100_000
HASH = "0" * 64


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "text.txt").write_text("the cat sat on the mat and the dog lay by the log\n" * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _ in range(2):  # the second time leaves the lock of a run that did nothing
            execute(load_recipe(Path("r.yaml")), Path("run"), console=Console(quiet=True))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return the run folder of a copy of it, where the command is typed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path / "run"


def manifest(**changes: Any) -> Callable[[Path], None]:
    """Return what edits a stage's manifest; a value that is `...` is taken out."""

    def edit(stage: Path) -> None:
        path = stage / "manifest.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return edit


def listed(name: str, **changes: Any) -> Callable[[Path], None]:
    """Return what lists one more file in a stage's manifest."""

    def edit(stage: Path) -> None:
        files = json.loads((stage / "manifest.json").read_text())["files"]
        entry = {"size": 1, "sha256": HASH, **changes}
        manifest(files={**files, name: entry})(stage)

    return edit


def holds(content: str | bytes, name: str = "manifest.json") -> Callable[[Path], None]:
    """Return what writes other content into a file of a stage."""
    data = content.encode() if isinstance(content, str) else content
    return lambda stage: (stage / name).write_bytes(data) and None


def instead(make: Callable[[Path], object], name: str = "manifest.json") -> Callable[[Path], None]:
    """Return what puts something else in the place of a file of a stage."""

    def edit(stage: Path) -> None:
        (stage / name).unlink(missing_ok=True)
        make(stage / name)

    return edit


def bind(path: Path) -> None:
    """Leave a socket in a folder."""
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        one.bind(path.name)
        os.chdir(here)


TYPES = {
    "stage": [1, None, [], {}], "kind": [1, None], "key": [1, None, {}], "digest": [2, None],
    "metrics": [None, [], "x", {"a": []}, {"a": {}}], "files": [None, [], "x", {"a": 1}],
    "main_metric": [1, None, []], "created": [1, None, "x", "2026-01-01", "10000-01-01T00:00Z"],
    "inputs": [None, [], "x"], "beside": [None, [1]], "follows_from": [None, "x", [1]],
    "parents": [[], None, {"a": 1}], "seed": ["x", 1.5], "processes": ["x"], "seconds": ["x", []],
    "peak_rss_mb": ["x"], "device": [1], "format": [None, 2, "1", [1], 10**300],
}  # fmt: skip
MANIFESTS: dict[str, Callable[[Path], None]] = {
    **{f"{k} is {v!r:.30}": manifest(**{k: v}) for k, values in TYPES.items() for v in values},
    **{f"no {k}": manifest(**{k: ...}) for k in ("stage", "kind", "key", "digest", "metrics")},
    **{
        f"names {name[:20]!a}": listed(name)
        for name in (
            "../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a/", "x" * 300, "a\0b", "x\ny",
            "/".join(["d"] * 3000), "\ud800", "model/none.bin", "..",
        )
    },
    **{f"size {size!r:.20}": listed("a", size=size) for size in (-1, 1.5, "1", None, True)},
    "huge size": listed("tokenizer/tokenizer.json", size=10**18),
    "no sha": listed("a", sha256=None),
    "sha of another": listed("tokenizer/tokenizer.json"),
    "deep": holds(DEEP),
    "deep within": holds('{"format": 1, "inputs": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}"),
    "a long number": holds('{"format": ' + "1" * 5000 + "}"),
    "twice": holds('{"format": 1, "format": 1}'),
    "NaN": holds("NaN"),
    "BOM": holds(b"\xef\xbb\xbf{}"),
    "UTF-16": holds("{}".encode("utf-16")),
    "empty": holds(""),
    "zeros": holds(bytes(1000)),
    "cut": lambda stage: os.truncate(stage / "manifest.json", 200),
    "a list": holds("[1]"),
    "a text": holds('"x"'),
    "null": holds("null"),
    "an object": holds("{}"),
    "bytes": holds(b"\xff\xfe\xfa"),
    "two objects": holds("{}{}"),
    "escapes": manifest(digest="\x1b[2J\nrlhf: done"),
    "a folder": instead(Path.mkdir),
    "a pipe": instead(os.mkfifo),
    "a socket": instead(bind),
    "a link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself": instead(lambda path: path.symlink_to(path)),
}  # fmt: skip


@pytest.mark.parametrize("edit", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_no_stage_wrote(
    run: Path,
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    edit: Callable[[Path], None],
) -> None:
    edit(run / "one")
    assert_refused(rlhf(["run", "r.yaml", "--out", "run"]), "run/one/")
    told = rlhf(["ls", "run"])
    _, one, two = told.out.splitlines()
    assert (told.code, told.err) == (0, ""), told
    assert "damaged: run/one/" in one and ("delete run/one" in one or "--out" in one)
    assert two.split("\t")[:3] == ["two", "tokenizer", "done"]


def add(name: str, make: Callable[[Path], object] = Path.touch) -> Callable[[Path], None]:
    """Return what adds something to a stage's folder."""

    def edit(stage: Path) -> None:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        make(stage / name)

    return edit


ADDED: dict[str, Callable[[Path], None]] = {
    "a file": add("x"),
    "a hidden file": add(".x"),
    "a file deep down": add("a/b/c/x"),
    "code": add("tokenizer/modeling.py"),
    "a second model": add("model/model.safetensors"),
    "bytes for a name": add(os.fsdecode(b"\xff\xfe")),
    "a name of two lines": add("a\nb"),
    "a pipe": add("x", os.mkfifo),
    "a socket": add("x", bind),
    "a link to nothing": add("x", lambda path: path.symlink_to("nowhere")),
    "a link to itself": add("x", lambda path: path.symlink_to(path)),
    "a link to a folder": add("x", lambda path: path.symlink_to("/tmp")),
    "a link to a file": add("x", lambda path: path.symlink_to("manifest.json")),
    "almost the system's": add("tokenizer/Thumbs.db.json"),
    "log cut": lambda stage: os.truncate(stage / "stage.log", 3),
    "log longer": lambda stage: os.truncate(stage / "stage.log", 100_000),
    "metrics of odd types": holds('[]\n1\n"x"\nnull\n', "metrics.jsonl"),
    "no metrics": lambda stage: (stage / "metrics.jsonl").unlink(),
    "a folder for a file": instead(Path.mkdir, "tokenizer/tokenizer.json"),
    "a pipe for a file": instead(os.mkfifo, "tokenizer/tokenizer.json"),
    "a link to itself for a file": instead(lambda p: p.symlink_to(p), "tokenizer/tokenizer.json"),
}


@pytest.mark.parametrize("edit", ADDED.values(), ids=ADDED)
def test_files_that_the_manifest_does_not_tell(
    run: Path,
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    edit: Callable[[Path], None],
) -> None:
    edit(run / "one")
    assert_refused(rlhf(["run", "r.yaml", "--out", "run"]), "run/one/", "delete run/one")
    told = rlhf(["ls", "run"])
    _, one, two = told.out.splitlines()
    assert (told.code, told.err) == (0, ""), told
    assert "damaged: run/one/" in one and "delete run/one" in one
    assert two.split("\t")[2] == "done"


def test_what_may_lie_in_a_finished_stage(run: Path, rlhf: Callable[..., Any]) -> None:
    for name in (".DS_Store", "tokenizer/Thumbs.db", ".nfs0000001", "work/x", "resume/x"):
        add(name)(run / "one")
    shutil.move(run / "one" / "tokenizer", run / "elsewhere")
    (run / "one" / "tokenizer").symlink_to(run / "elsewhere")
    assert "up to date" in rlhf(["run", "r.yaml", "--out", "run"]).out
    assert [row.split("\t")[2] for row in rlhf(["ls", "run"]).out.splitlines()[1:]] == ["done"] * 2
