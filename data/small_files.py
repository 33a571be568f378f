"""Reads the small files that a user writes by hand, such as recipes and plugins."""

from __future__ import annotations

from pathlib import Path

MOST_BYTES = 2**20
"""Of a file that is written by hand."""


def read_file(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return what is in a file that a user wrote; a pipe or a device is never opened.

    Raises:
        OSError: it can't be read, is no file, or is larger than `most` bytes; `strerror` says so.
    """
    # A pipe would be waited for, and /dev/zero has no end.
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(0, "it is a pipe, a device or a socket, no file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(0, f"it is larger than {most:,} bytes, which no such file is")
    return content
