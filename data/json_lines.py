"""Files of JSON lines that processes append to, and may be killed while they do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from data.errors import ArtifactError
from data.storage import storage_errors


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, sync: bool = False) -> None:
    """Append rows to a file; a last line that a killed process left unfinished is removed first.

    Args:
        path: made if it isn't there.
        rows: what to append.
        sync: flush to the disk, for rows that can't be made again after a loss of power.

    Raises:
        StorageError: the disk is full, or the path can't be written.
    """
    with storage_errors(path), path.open("ab+") as file:
        _drop_half_line(file)
        for row in rows:
            file.write(json_line(row).encode())
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _drop_half_line(file: BinaryIO) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def json_line(row: Mapping[str, Any], *, allow_nan: bool = True) -> str:
    """Return a row as a line of JSON that can be written as UTF-8."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=allow_nan)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character: as an escape it is kept
        text = json.dumps(row, allow_nan=allow_nan)
    return text + "\n"


def read_json_lines(path: Path, *, skip_broken: bool = False) -> Iterator[Any]:
    """Yield what the lines hold; a last one that a killed process left unfinished is passed over.

    Args:
        path: the file.
        skip_broken: pass over other lines that are no JSON, too.

    Raises:
        ArtifactError: the file can't be read, or a line is no JSON.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                except ValueError as error:
                    if skip_broken or not line.endswith(b"\n"):
                        continue
                    raise ArtifactError(
                        f"{path}:{number} is no JSON ({error}); restore the file, or run its "
                        "stage again"
                    ) from error
                yield value
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be read ({error.strerror}); restore the file, or run its stage again"
        ) from error
