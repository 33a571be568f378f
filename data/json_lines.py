"""Our own files of JSON: whole ones, and lines that processes append to until they are killed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from data.errors import ArtifactError
from data.storage import open_file, storage_errors, write_atomically

MOST_BYTES = 2**28
"""Of a file that is read at once; none of ours comes near."""


_NAMES: dict[type, str] = {dict: "object", list: "list"}


class DoubledKeyError(ValueError):
    """An object of JSON has a key twice; which of the two is meant nobody knows."""


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, as an `object_pairs_hook`.

    Raises:
        DoubledKeyError: a key stands twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        (twin, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise DoubledKeyError(f"key '{twin:.60}' stands twice in an object")
    return content


def parse_json(text: str | bytes | bytearray) -> Any:
    """Return what a JSON text holds that is ours, or a server's.

    Raises:
        ValueError: it is no JSON, is nested too deep, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=without_twins)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json_object(path: Path, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file of ours.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        ArtifactError: it is no file or can't be read, or holds something else; says why.
    """
    try:
        # Not opened before it is known to be a file: a pipe would be waited for.
        if not path.is_file() and path.exists():
            raise ArtifactError(f"{path} is no file")
        if path.stat().st_size > most:
            raise ArtifactError(f"{path} is larger than such a file can be ({most:,} bytes)")
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is no UTF-8 text ({error.reason})") from error
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(f"{path} can't be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds {type(content).__name__}, no JSON object")
    return content


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, sync: bool = False) -> None:
    """Append rows to a file; a last line that a killed process left unfinished is removed first.

    Args:
        path: made if it isn't there.
        rows: what to append.
        sync: flush to the disk, for rows that can't be made again after a loss of power.

    Raises:
        StorageError: the disk is full, or the path can't be written.
    """
    with storage_errors(path), open(path, "ab+", opener=open_file) as file:
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


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file of rows, there when it is whole; a number that is none is an error."""
    write_atomically(path, (json_line(row, allow_nan=False) for row in rows))


def read_json_lines(
    path: Path, *, skip_broken: bool = False, of: type[dict[Any, Any] | list[Any]] = dict
) -> Iterator[Any]:
    """Yield what the lines hold; a last one that was left unfinished is passed over.

    Args:
        path: the file.
        skip_broken: pass over other lines that are none, too.
        of: what each line is: an object or a list.

    Raises:
        ArtifactError: the file can't be read, or a line is none.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = parse_json(line)
                    if not isinstance(value, of):
                        raise ValueError(f"it is {type(value).__name__}")
                except ValueError as error:
                    if skip_broken or not line.endswith(b"\n"):
                        continue
                    raise ArtifactError(
                        f"{path}:{number} is no JSON {_NAMES[of]} ({error}); restore the file, or "
                        "run its stage again"
                    ) from error
                yield value
    except OSError as error:
        raise ArtifactError(
            f"{path} can't be read ({error.strerror}); restore the file, or run its stage again"
        ) from error
