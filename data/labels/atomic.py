"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from data.errors import StorageError


def write_atomic(path: Path, parts: Iterable[str]) -> int:
    """Write text through a temporary file, fsync and rename; return how many parts there were.

    Whoever reads meanwhile sees the file of before, and an error or a loss of power leaves it.

    Raises:
        StorageError: the disk is full, or the folder can't be written.
    """
    count = 0
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            for part in parts:
                file.write(part)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return count


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
