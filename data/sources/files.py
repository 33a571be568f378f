"""Files as rows: JSON Lines, JSON, CSV, Parquet, Arrow and text, compressed with gz or zst or not.

Every row comes with where it stands (`file:line`), so that a malformed one can be named. A file
that can't be read at all is a `SourceError`; a line that can't be is a `RawRow` with a problem.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from data.errors import SourceError
from data.sources.folders import SUFFIXES, kind_of
from data.sources.formats import TEXT_LAYOUTS
from data.sources.tables import arrow_rows, parquet_rows
from data.sources.values import plain

SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT = 4_000_000
"""Characters after which a document of a text file is cut at the end of a line."""
_CHUNK = 1 << 20
_CUT = "cut a text longer than {:,} characters at a line"


class RawRow(NamedTuple):
    """A row as it stands in its file: its columns, or what is wrong with it; and what was done."""

    where: str
    value: dict[str, Any] | None
    problem: str = ""
    note: str = ""


def readable(row: RawRow) -> RawRow:
    """Return a row whose values JSON can hold, as text where they are something else."""
    return row if row.value is None else row._replace(value=plain(row.value))


def raw_rows(file: Path | str, layout: str = "auto") -> Generator[RawRow]:
    """Yield a file's rows.

    Args:
        file: what to read.
        layout: the recipe's format; a text layout makes a file of an unknown kind readable, and
            a format of rows reads a text file a line a row.

    Raises:
        SourceError: the file can't be opened, unpacked or decoded.
    """
    kind = kind_of(file)
    if not kind and layout not in TEXT_LAYOUTS:
        raise SourceError(
            f"can't tell what {file} is by its name; known: {', '.join(SUFFIXES)}, each also with "
            ".gz or .zst (or say `format: text`)"
        )
    try:
        if kind in (".parquet", ".arrow"):
            yield from map(readable, _table(file, kind))
        else:
            with open_packed(file) as stream:
                yield from map(readable, _READERS.get(kind, _text)(file, stream, layout))
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} is not UTF-8 text: {error.reason}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{file} is damaged, it can't be unpacked: {error}") from error
    except OSError as error:
        raise SourceError(f"can't read {file}: {error.strerror or error}") from error


@contextlib.contextmanager
def open_packed(file: Path | str) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, unpacked when its name ends in .gz or .zst."""
    suffix = Path(file).suffix.lower()
    with _opened(file) as stream:
        if suffix == ".gz":
            with gzip.open(stream, "rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        elif suffix == ".zst":
            yield cast(BinaryIO, io.BufferedReader(_ZstdStream(stream), _CHUNK))
        else:
            yield stream


def _opened(file: Path | str) -> BinaryIO:
    """Open a local file, or one of the hub by its address."""
    if isinstance(file, Path):
        return open(file, "rb")
    from datasets.utils.file_utils import xopen

    return cast(BinaryIO, xopen(file, "rb"))


class _ZstdStream(io.RawIOBase):
    """Unpacks zstd frames; unlike the library's reader it refuses a file that is cut off."""

    def __init__(self, packed: BinaryIO) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._packed = packed
        self._frame: Any = None
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            chunk = self._frame.unused_data if self._frame and self._frame.eof else b""
            chunk = chunk or self._packed.read(_CHUNK)
            if not chunk:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            try:
                self._pending = self._frame.decompress(chunk)
            except self._error as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


def _json_lines(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _json_row(f"{file}:{number}", line)


def _json_row(where: str, line: bytes) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return RawRow(where, None, "not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return RawRow(where, None, f"not JSON ({error})")
    return _object(where, value)


def _object(where: str, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(where, value)
    return RawRow(where, None, f"not a JSON object but {json.dumps(value)[:40]}")


def _json(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    """Read an array of objects, an object that holds one, or JSON Lines under the wrong name."""
    first = stream.readline()
    while first and not first.strip():
        first = stream.readline()
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"{") and _is_object(start):
        yield _json_row(f"{file}:1", first)
        for row in _json_lines(file, stream, layout):
            line = int(row.where.rpartition(":")[2]) + 1
            yield row._replace(where=f"{file}:{line}")
        return
    text = (first + stream.read()).decode("utf-8-sig")
    if start.startswith(b"["):
        yield from _json_array(file, text)
        return
    try:
        whole = json.loads(text)
    except ValueError as error:
        yield RawRow(f"{file}:{getattr(error, 'lineno', 1)}", None, f"not JSON ({error})")
        return
    held = [v for v in whole.values() if isinstance(v, list)] if isinstance(whole, dict) else []
    if len(held) == 1 and held[0] and all(isinstance(item, dict) for item in held[0]):
        for number, item in enumerate(held[0], start=1):
            yield RawRow(f"{file}:row {number}", item)
    else:
        yield _object(f"{file}:1", whole)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _json_array(file: Path | str, text: str) -> Iterator[RawRow]:
    decoder = json.JSONDecoder()
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        while place < len(text) and (text[place].isspace() or text[place] == ","):
            place += 1
        line, counted = line + text.count("\n", counted, place), place
        if place >= len(text):
            yield RawRow(f"{file}:{line}", None, "not JSON (the array is not closed)")
            return
        if text[place] == "]":
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield RawRow(f"{file}:{line}", None, f"not JSON ({error}); the rest is not read")
            return
        yield _object(f"{file}:{line}", value)


def _csv(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    csv.field_size_limit(1 << 27)
    comma = "\t" if kind_of(file) == ".tsv" else ","
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter=comma, strict=True)
        try:
            _ = reader.fieldnames  # reads the header, so that lines are counted from it
        except csv.Error as error:
            raise SourceError(f"{file}:1: the header is not CSV ({error})") from error
        while True:
            where = f"{file}:{reader.line_num + 1}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(where, None, f"not CSV ({error})")
                continue
            if None in row or None in row.values():
                yield RawRow(where, None, f"not as many fields as the header ({len(row)})")
            else:
                yield RawRow(where, dict(row))


def _table(file: Path | str, kind: str) -> Iterator[RawRow]:
    import pyarrow

    what = "Parquet" if kind == ".parquet" else "Arrow"
    try:
        with open_packed(file) as stream:
            rows = parquet_rows(stream) if kind == ".parquet" else arrow_rows(stream)
            for number, row in enumerate(rows, start=1):
                yield RawRow(f"{file}:row {number}", row)
    except pyarrow.ArrowException as error:
        first_line = str(error).splitlines()[0]
        raise SourceError(f"{file} is not a readable {what} file: {first_line}") from error


def _text(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    parts: list[str] = []
    begun, size = 1, 0
    with contextlib.closing(_parts(stream, layout)) as found:
        for number, part, ends in found:
            begun = begun if parts else number
            parts.append(part)
            size += len(part)
            if ends or size > MAX_DOCUMENT:
                note = "" if ends else _CUT.format(MAX_DOCUMENT)
                text = "".join(parts).strip("\r\n")
                yield RawRow(f"{file}:{begun}", {"text": text}, note=note)
                parts, size = [], 0
    if parts:
        yield RawRow(f"{file}:{begun}", {"text": "".join(parts).strip("\r\n")})


def _parts(stream: BinaryIO, layout: str) -> Generator[tuple[int, str, bool]]:
    """Yield a text's line numbers and lines, and whether a document ends there."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if layout not in ("auto", "text", "text_blank_lines"):
                yield number, line, True
            elif layout == "text_blank_lines":
                yield number, line, not line.strip()
            else:
                *closed, rest = line.split(SEPARATOR)
                for part in closed:
                    yield number, part, True
                if rest:
                    yield number, rest, False


_READERS: dict[str, Callable[[Path | str, BinaryIO, str], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
}
