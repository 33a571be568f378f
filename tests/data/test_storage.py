"""A full disk, whoever meets it, is told in one sentence; what is written is whole and ours."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data.errors import StorageError
from data.storage import sha256, space_errors, storage_errors, sync_tree, write_atomically

LIMIT = 1 << 16
BIG = {"weights": torch.ones(LIMIT)}


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 64 KiB, as `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _torch_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(BIG, file)


WRITERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Python": (lambda path: path.write_bytes(b"x" * 2 * LIMIT), "larger than a file may be"),
    "torch by name": (lambda path: torch.save(BIG, path), "no space left.*ulimit -f"),
    "torch by file": (_torch_file, "larger than a file may be"),
    "safetensors": (lambda path: save_file(BIG, path), "larger than a file may be"),
    "NumPy": (lambda path: BIG["weights"].numpy().tofile(path), "no space left.*ulimit -f"),
}


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("guard", [storage_errors, space_errors])
@pytest.mark.parametrize("who", WRITERS)
def test_a_file_that_may_not_grow_is_told(tmp_path: Path, who: str, guard: Any) -> None:
    write, told = WRITERS[who]
    path = tmp_path / "weights"
    with pytest.raises(StorageError, match=f"{path}.*{told}"), guard(path):
        write(path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left on the disk of out"),
        (OSError(errno.EDQUOT, "x"), "no space left in the disk quota of out"),
        (OSError(errno.EROFS, "x"), "out can't be written: its disk is read-only"),
        (OSError(errno.ENOSPC, "x", "out/a/b"), "no space left on the disk of out/a/b"),
        (OSError(errno.ENOSPC, "x", "/elsewhere"), "no space left on the disk of out"),
        (Exception("No space left on device (os error 28)"), "no space left on the disk"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), r"B free\)"),
        (RuntimeError("[enforce fail at inline_container.cc:6] . unexpected pos 6 vs 5"), "B free"),
        (OSError("Not enough disk space. Needed: 5 GB"), "no space left on its disk"),
    ],
)
def test_errors_of_no_room_name_the_file_and_the_way_out(error: Exception, told: str) -> None:
    for guard in (storage_errors, space_errors):
        with pytest.raises(StorageError, match=told), guard(Path("out")):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no number"),
        RuntimeError("PytorchStreamReader failed reading zip archive: not a ZIP archive"),
        RuntimeError("out of memory"),
        FileNotFoundError(errno.ENOENT, "No such file", "input.jsonl"),
    ],
)
def test_other_errors_of_a_stage_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, space_errors(Path("out")):
        raise error
    assert raised.value is error


def test_a_refused_write_is_told() -> None:
    for error in (
        PermissionError(errno.EACCES, "x"),
        Exception("Permission denied (os error 13)"),
    ):
        told = r"out can't be written \(Permission denied\)"
        with pytest.raises(StorageError, match=told), storage_errors(Path("out")):
            raise error


def test_many_writers_of_one_file_leave_one_whole_text(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    texts = [str(number) * 20_000 for number in range(4)]
    children = []
    for text in texts:
        child = os.fork()
        if child == 0:
            for _ in range(30):
                write_atomically(path, text)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert codes == [0, 0, 0, 0]
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_write_that_fails_leaves_the_old_text_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]


def test_parts_are_counted_and_there_together_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert write_atomically(path, ["one\r\n", "two\n"]) == 2

    def parts(end: BaseException) -> Iterator[str]:
        yield "half"
        raise end

    with pytest.raises(StorageError, match="no space left"):
        write_atomically(path, parts(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, parts(KeyboardInterrupt()))
    assert path.read_bytes() == b"one\r\ntwo\n" and os.listdir(tmp_path) == ["a.jsonl"]


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = tmp_path / "model" / "deep"
        folder.mkdir(parents=True)
        save_file({"a": torch.ones(2)}, folder / "weights.safetensors")
        (folder / "tool").write_text("x")
        (folder / "tool").chmod(0o700)
        sync_tree(tmp_path / "model")
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"weights.safetensors": 0o640, "tool": 0o740}
    assert os.umask(before) == before


def test_every_folder_and_file_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stage/model/deep").mkdir(parents=True)
    (tmp_path / "stage/work").mkdir()
    for name in ("stage/a", "stage/model/b", "stage/model/deep/c", "stage/work/d"):
        (tmp_path / name).write_text("x")
    flushed = set()
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.add(os.readlink(f"/proc/self/fd/{fd}")))
    sync_tree(tmp_path / "stage", leave_out=["work"])
    expected = ("", "/stage", "/stage/a", "/stage/model", "/stage/model/b")
    deeper = ("/stage/model/deep", "/stage/model/deep/c")
    assert flushed == {f"{tmp_path}{name}" for name in (*expected, *deeper)}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that were read to be hashed, as it grows."""
    names: list[str] = []
    honest = hashlib.file_digest

    def digest(file: Any, kind: str) -> Any:
        names.append(Path(file.name).name)
        return honest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return names


def write_at(path: Path, seconds: int, text: str) -> None:
    path.write_text(text)
    os.utime(path, (seconds, seconds))


def test_a_file_is_read_again_to_be_hashed_only_once_it_has_changed(
    tmp_path: Path, read: list[str]
) -> None:
    path = tmp_path / "a"
    write_at(path, 1, "one")
    assert sha256(path) == sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert read == ["a"]
    write_at(path, 2, "two")
    assert sha256(path) == hashlib.sha256(b"two").hexdigest()
    write_at(tmp_path / "b", 2, "six")
    (tmp_path / "b").replace(path)  # of the same size and time
    assert sha256(path) == hashlib.sha256(b"six").hexdigest()


def test_a_file_that_was_written_just_now_is_read_each_time(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.storage._SETTLED_NS", 10**18)
    path = tmp_path / "a"
    path.write_text("one")
    assert sha256(path) == sha256(path)
    assert read == ["a", "a"]
