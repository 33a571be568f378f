"""Writing files so that they are whole or not there, and errors that speak of the disk.

Libraries tell a full disk each in their own way: Python with an errno, those written in Rust with
`(os error 28)` in their text, torch's zip writer with a position in its file that it did not
expect, NumPy and datasets with a sentence. All of them become one `StorageError`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from data.errors import RlhfError, StorageError

_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that writing alone gives."""
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
)  # fmt: skip
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) name the system's error."""
_UNNUMBERED = re.compile(
    r"unexpected pos \d+ vs|PytorchStreamWriter|iostream error"  # torch.save
    r"|\d+ requested and \d+ written"  # NumPy
    "|Not enough disk space"  # datasets
    "|database or disk is full"  # SQLite
)
"""Errors of writing that keep the system's own to themselves."""
MOST_OF_NAME = 255
"""Bytes of the name of a file or folder."""
_LEFTOVER = ".*.tmp"
_KINDS = {
    stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip
_SETTLED_NS = 100_000_000
"""Age at which a file's times tell any further change; the clock they go by ticks each 10 ms."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a refused write into one clear sentence.

    Args:
        path: what is written in the block, or the folder it goes to.

    Raises:
        StorageError: the disk is full, or the path can't be written.
    """
    try:
        yield
    except Exception as error:
        trouble = _full(error, path) or _refused(error, path)
        if trouble is None:
            raise
        raise StorageError(trouble) from error


@contextlib.contextmanager
def space_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into one clear sentence, around work that reads as well as writes.

    Args:
        folder: where the work writes.

    Raises:
        StorageError: there is no room.
    """
    try:
        yield
    except Exception as error:
        trouble = _full(error, folder)
        if trouble is None:
            raise
        raise StorageError(trouble) from error


def _full(error: Exception, path: Path) -> str | None:
    """Return the sentence of an error that says there is no room, None of any other."""
    number = _number(error)
    if number not in (*_SPACE, 0):
        return None
    place = _named(error, path)
    kept = "the last whole checkpoint is kept"
    if number == errno.EROFS:
        return f"{place} can't be written: its disk is read-only; choose another folder with --out"
    if number == errno.EFBIG:
        return (
            f"{place} grew larger than a file may be here; raise the limit (`ulimit -f`, or the "
            f"file system's) or choose another folder with --out, and run again: {kept}"
        )
    if number == errno.EDQUOT:
        return f"no space left in the disk quota of {place}; free some and run again, {kept}"
    if number == errno.ENOSPC:
        return f"no space left on the disk of {place}; free some and run again, {kept}"
    return (
        f"{place} can't be written whole: no space left on its disk ({_free(path)} free) or in a "
        "quota, or the file is larger than one may be (`ulimit -f`); make room or choose another "
        f"folder with --out, and run again: {kept}"
    )


def _refused(error: Exception, path: Path) -> str | None:
    number = _number(error)
    if number not in _REFUSED:
        return None
    return f"{path} can't be written ({os.strerror(number)}); choose another folder with --out"


def _number(error: Exception) -> int | None:
    """Return the system's number of an error of writing, 0 when it is not told; None for none."""
    if isinstance(error, RlhfError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    named = _OS_ERROR.search(text)
    if named is not None:
        return int(named[1])
    if not _UNNUMBERED.search(text):
        return None
    # torch closes its file after the write has failed, and that fails too: the first one knows.
    first = error.__context__
    return _number(first) or 0 if isinstance(first, Exception) else 0


def _named(error: Exception, path: Path) -> Path:
    """Return the file that an error names, where it lies inside the path."""
    name = getattr(error, "filename", None)
    if isinstance(name, (str, os.PathLike)) and Path(name).is_relative_to(path):
        return Path(name)
    return path


def _free(path: Path) -> str:
    place = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
    return f"{shutil.disk_usage(place).free / 1e9:.1f} GB"


def expand(path: str | Path) -> Path:
    """Return a path with `~` expanded, as it is where that names no user."""
    return Path(os.path.expanduser(path))


def require_short_names(path: Path) -> None:
    """Refuse a path with a name that no file or folder can have, also where none is yet.

    Raises:
        OSError: ENAMETOOLONG.
    """
    if any(len(os.fsencode(name)) > MOST_OF_NAME for name in path.parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))


def require_file_place(path: Path) -> None:
    """Refuse a place to write a file at where something else is.

    A device would be replaced, what a link names changed, a pipe waited for.

    Raises:
        StorageError: says what is there.
    """
    with storage_errors(path):
        require_short_names(path)
        try:
            kind = stat.S_IFMT(path.lstat().st_mode)
        except FileNotFoundError:
            return
        if kind != stat.S_IFREG:
            raise StorageError(
                f"{path} is a {_KINDS.get(kind, 'special file')}, and a file is to be written "
                "there; move it away, or choose another place with --out"
            )


def open_file(path: str | Path, flags: int) -> int:
    """Open a file to write to, as the `opener` of `open`: what `require_file_place` lets through.

    Raises:
        StorageError: something else is there.
    """
    require_file_place(Path(path))
    # It may have become something else since.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def write_atomically(path: Path, text: str | Iterable[str]) -> int:
    """Write a file so that after a crash it is there whole or as it was before.

    Several processes may write the same one: each through a temporary file of its own, which
    `remove_leftovers` knows.

    Args:
        path: the file.
        text: all of it, or parts, such as lines.

    Returns:
        The number of parts.

    Raises:
        StorageError: the disk is full, or the path can't be written.
    """
    require_file_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    with storage_errors(path):
        try:
            with open(temporary, "w", encoding="utf-8", newline="", opener=open_file) as file:
                for part in (text,) if isinstance(text, str) else text:
                    file.write(part)
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return count


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for path in folder.rglob(_LEFTOVER):
        if path.is_file():
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path, *, leave_out: Collection[str] = ()) -> None:
    """Flush a folder to the disk: files, entries of every folder inside, and its own name.

    On the way each file gets the rights that the umask gives new ones; some libraries write
    through temporary files that are their maker's alone.

    Args:
        folder: the folder.
        leave_out: names right inside it that stay as they are.
    """
    rights = 0o666 & ~_umask()
    for inner, folders, names in os.walk(folder):
        if Path(inner) == folder:
            folders[:] = [name for name in folders if name not in leave_out]
        for name in names:
            _sync_file(Path(inner, name), rights)
        sync_folder(Path(inner))
    sync_folder(folder.parent)


def _sync_file(path: Path, rights: int) -> None:
    if path.is_symlink() or not path.is_file():
        return
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode | rights != mode:
            os.fchmod(file.fileno(), mode | rights)
        os.fsync(file.fileno())


def _umask() -> int:
    # It can't be read without being set; what another thread makes meanwhile is its owner's alone.
    current = os.umask(0o077)
    os.umask(current)
    return current


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex; a process reads it again only once it has changed.

    That it has not changed is told by its inode, size and times, unless it is so young that a
    change might leave them as they are.

    Raises:
        OSError: it can't be read.
    """
    # Looked at before it is read: what changes meanwhile no longer fits these facts, and is read
    # again the next time.
    facts = path.stat()
    if time.time_ns() - facts.st_mtime_ns < _SETTLED_NS:
        return _read_sha256(path)
    known_by = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    return _known_sha256(path, known_by)


@lru_cache(maxsize=4096)
def _known_sha256(path: Path, known_by: tuple[int, ...]) -> str:
    return _read_sha256(path)


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
