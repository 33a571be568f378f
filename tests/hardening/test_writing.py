"""Places to write to at which something else is, and disks that take no more."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError, StorageError
from data.json_lines import append_json_lines, read_json_object
from data.storage import open_file, require_file_place, write_atomically
from pipeline.run.runner import locked

RECIPE = """
name: small
stages:
  one: {kind: tokenizer, train: [{path: text.txt}], vocab_size: 300}
"""
SCORE = ["score", "rule:length", "--option", "target=3"]
ROWS = '{"prompt": "a", "response": " b"}\n'
FILES = {"r.yaml": RECIPE, "text.txt": "the cat sat on the mat\n" * 20, "rows.jsonl": ROWS}


def bind(path: Path) -> None:
    """Leave a socket in a folder."""
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def _linked_twice(path: Path) -> None:
    path.with_name("between").symlink_to("text.txt")
    path.symlink_to("between")


def _linked_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


OTHERS: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": bind,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    # All within the test's folder: without the guard their targets are written.
    "link to a file": lambda path: path.symlink_to(path.parent / "text.txt"),
    "link to a link": _linked_twice,
    "link to a pipe": _linked_pipe,
    "link to a folder": lambda path: path.symlink_to("."),
}
NO_FOLDER: dict[str, Callable[[Path], object]] = {
    "file": Path.touch,
    **{k: v for k, v in OTHERS.items() if k not in ("folder", "link to a folder")},
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    "args",
    [
        pytest.param([*SCORE, "rows.jsonl", "--out", "there"], id="score"),
        pytest.param([*SCORE, "rows.jsonl", "--out", "./../{}/there"], id="dots"),
        pytest.param(["copy", "quickstart", "there"], id="copy"),
    ],
)
def test_a_file_is_written_where_none_or_a_file_is(
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    tmp_path: Path,
    args: list[str],
    make: Callable[[Path], object],
) -> None:
    typed = [arg.format(tmp_path.name) for arg in args]
    assert_refused(rlhf(typed, {**FILES, "there": make}), "there")


@pytest.mark.parametrize("make", NO_FOLDER.values(), ids=NO_FOLDER)
@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["run", "r.yaml", "--out", "there"], id="run"),
        pytest.param(["run", "r.yaml", "--out", "there/deeper/run"], id="run deeper"),
        pytest.param(["validate", "r.yaml", "--out", "there"], id="validate"),
        pytest.param([*SCORE, "rows.jsonl", "--out", "there/scores"], id="score into it"),
        pytest.param(["copy", "quickstart", "there/mine.yaml"], id="copy into it"),
        pytest.param(["init", "there/mine.yaml", "--texts", "rows.jsonl"], id="init into it"),
        pytest.param(["ls", "there"], id="ls"),
    ],
)
def test_a_folder_is_a_folder(
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    args: list[str],
    make: Callable[[Path], object],
) -> None:
    assert_refused(rlhf(args, {**FILES, "there": make}), "there")


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", [".lock", ".processes.lock", "recipe.yaml"])
def test_what_a_run_writes_beside_its_stages(
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    make: Callable[[Path], object],
    name: str,
) -> None:
    told = rlhf(["run", "r.yaml", "--out", "run"], {**FILES, f"run/{name}": make})
    kept = {"run/.lock", "run/.processes.lock"} - {f"run/{name}"}  # as after any run
    assert {*told.changed} <= kept
    assert_refused(dataclasses.replace(told, changed=()), "run")


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_device_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    path = tmp_path / "full"
    path.touch()
    monkeypatch.setattr(Path, "lstat", lambda self: os.stat_result((kind, *[0] * 9)))
    for write in (
        lambda: require_file_place(path),
        lambda: write_atomically(path, "x"),
        lambda: append_json_lines(path, [{}]),
        lambda: open_file(path, os.O_WRONLY | os.O_CREAT),
    ):
        with pytest.raises(StorageError, match="full is a device"):
            write()
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_that_is_made_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "log").symlink_to(target)
    monkeypatch.setattr("data.storage.require_file_place", lambda path: None)
    with pytest.raises(StorageError, match="log can't be written"):
        append_json_lines(tmp_path / "log", [{}])
    assert target.read_text() == "kept"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_disk_leaves_the_former_file(
    rlhf: Callable[..., Any],
    assert_refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def full(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("data.storage.os.fsync", full)
    files = {**FILES, "scores.jsonl": "before"}
    assert_refused(rlhf([*SCORE, "rows.jsonl", "--out", "scores.jsonl"], files), "scores.jsonl")


def test_a_file_larger_than_ours_can_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json_object(tmp_path / "a.json", most=8) == {"a": 1}
    with pytest.raises(ArtifactError, match="larger"):
        read_json_object(tmp_path / "a.json", most=7)


PLACES = {
    "long": "x" * 300,
    "long within": "x/" + "y" * 300,
    "longer than any": "/".join(["d" * 100] * 60),
    "loop": "loop",
    "in a loop": "loop/x",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(
    "args",
    [
        ["ls", "{}"],
        ["run", "r.yaml", "--out", "{}"],
        ["validate", "r.yaml", "--out", "{}"],
        [*SCORE, "{}", "--out", "scores.jsonl"],
        [*SCORE, "rows.jsonl", "--out", "{}"],
        ["copy", "quickstart", "{}"],
        ["label", "tasks", "{}"],
        ["label", "export", "{}", "--out", "labels"],
    ],
    ids=lambda args: " ".join(args[:2]) + f" {len(args)}",
)
def test_a_place_that_can_be_none(
    rlhf: Callable[..., Any], assert_refused: Callable[..., None], args: list[str], place: str
) -> None:
    files = {**FILES, "loop": lambda path: path.symlink_to("loop")}
    assert_refused(rlhf([arg.format(place) for arg in args], files), place[:1])


def test_a_lock_that_the_disk_does_not_take_is_told(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StorageError, match="larger than a file may be"), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
