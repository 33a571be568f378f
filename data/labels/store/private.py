"""Rights of what holds labels and hashes of passwords: its owner's alone.

Our own files and the run's own folder are made so, and made so again where they are not. A folder
that the user named for the database may be shared on purpose: it is told and left.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from data.storage import storage_errors

_OTHERS = 0o077
_BESIDE = ("", "-wal", "-shm", "-journal")
"""SQLite makes the later ones with the rights of the database."""


def make_folder(folder: Path) -> None:
    """Make a folder for its owner alone, unless it is there; a `StorageError` if it can't be."""
    with storage_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_file(path: Path) -> None:
    """Make a file for its owner alone, unless it is there; a `StorageError` if it can't be."""
    with storage_errors(path):
        if not os.path.lexists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))


def close_to_others(database: Path, home: Path | None) -> list[str]:
    """Take away what others may do with a database's files, and return what to tell of it.

    Args:
        database: the SQLite file.
        home: the run's own folder for labels; None where there is none.
    """
    folder = database.absolute().parent
    is_own = home is not None and folder.resolve() == home.resolve()
    ours = [database.with_name(database.name + end) for end in _BESIDE]
    ours += [database.parent] if is_own else []
    lines = [line for path in ours if (line := _tighten(path))]
    if not is_own and (mode := _open_to_others(folder)):
        lines.append(
            f"the folder {folder} of the label database lets others in (rights {mode:04o}): keep "
            "the database in a folder of its own, or take the rights away with chmod 700"
        )
    return lines


def _tighten(path: Path) -> str | None:
    mode = _open_to_others(path)
    if not mode:
        return None
    try:
        path.chmod(mode & ~_OTHERS)
        refused = "its file system keeps no rights" if _open_to_others(path) else ""
    except OSError as error:
        refused = str(error.strerror).lower()
    if refused:
        return (
            f"{path} lets others in (rights {mode:04o}), and that can't be changed ({refused}): "
            "keep the label database where only you can read it"
        )
    return f"{path} let others in (rights {mode:04o}); it is yours alone now"


def _open_to_others(path: Path) -> int:
    """Return the rights of what is there and lets others in, else 0."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0
    return mode if mode & _OTHERS else 0
