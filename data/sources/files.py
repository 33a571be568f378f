"""Files as rows: JSON Lines, JSON, CSV, Parquet, Arrow and text, compressed with gz or zst or not.

Every row comes with where it stands (`file:line`), so that a malformed one can be named. A file
that can't be read at all is a `SourceError`; a line that can't be is a `RawRow` with a problem.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, NamedTuple, cast

from data.errors import SourceError, in_words
from data.sources import values
from data.sources.folders import SUFFIXES, kind_of
from data.sources.formats import TEXT_LAYOUTS
from data.sources.tables import arrow_rows, parquet_rows
from data.sources.values import JsonError, RowError, json_value, json_value_at, plain, require_few

SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT = 4_000_000
"""Characters after which a document of a text file is cut at the end of a line."""
_CHUNK = 1 << 20
_ZSTD_CHUNK = 1 << 12
"""Packed bytes unpacked at a time: each may become 30,000."""
_SKIPPED = 4
"""So many times the longest row is passed over to find where a longer one ends."""
_UNSURE = 16
"""Characters at the end of what is held of JSON in which a number or a word may go on."""
_SPACES, _BETWEEN = re.compile(r"\s*"), re.compile(r"[\s,]*")
_CUT = "cut a text longer than {:,} characters at a line"


class RawRow(NamedTuple):
    """A row as it stands in its file: its columns, or what is wrong with it; and what was done."""

    where: str
    value: dict[str, Any] | None
    problem: str = ""
    note: str = ""


def readable(row: RawRow) -> RawRow:
    """Return a row whose values JSON can hold, as text where they are something else."""
    try:
        return row if row.value is None else row._replace(value=plain(row.value))
    except RecursionError:
        return RawRow(row.where, None, f"nested more than {values.MAX_DEPTH} deep")


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
        line = _undecodable(file)
        raise SourceError(f"{file} is not UTF-8 text: {error.reason}{line}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{file} is damaged, it can't be unpacked: {error}") from error
    except OSError as error:
        raise SourceError(f"can't read {file}: {error.strerror or in_words(error)}") from error


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
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            chunk = self._frame.unused_data if self._frame and self._frame.eof else b""
            chunk = chunk or self._packed.read(_ZSTD_CHUNK)
            if not chunk:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            try:
                self._pending = memoryview(self._frame.decompress(chunk))
            except self._error as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


def capped_lines(file: Path | str, stream: IO[AnyStr]) -> Iterator[tuple[int, AnyStr | None]]:
    """Yield numbered lines from 1 on, None for one that is longer than a row may be.

    Raises:
        SourceError: a line goes on for several times as long.
    """
    for number in itertools.count(1):
        line = stream.readline(values.MAX_ROW + 1)
        if not line:
            return
        if len(line) <= values.MAX_ROW:
            yield number, line
            continue
        for _ in range(_SKIPPED):
            if len(line) <= values.MAX_ROW or line[-1:] in ("\n", b"\n"):
                break
            line = stream.readline(values.MAX_ROW + 1)
        else:
            raise _too_long(file, number)
        yield number, None


def _too_long(file: Path | str, line: int) -> SourceError:
    return SourceError(
        f"{file}:{line}: a row is longer than {values.MAX_ROW:,} bytes; cut it into shorter ones"
    )


def _json_lines(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    for number, line in capped_lines(file, stream):
        if line is None or line.strip():
            yield _json_row(f"{file}:{number}", line)


def _json_row(where: str, line: bytes | None) -> RawRow:
    if line is None:
        return RawRow(where, None, f"longer than {values.MAX_ROW:,} bytes")
    try:
        value = json_value(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return RawRow(where, None, "not UTF-8 text")
    except JsonError as error:
        return RawRow(where, None, f"not JSON ({error})")
    return _object(where, value)


def _object(where: str, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(where, value)
    shown = f"a list of {len(value)}" if isinstance(value, list) else json.dumps(value)[:40]
    return RawRow(where, None, f"not a JSON object but {shown}")


def _json(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    """Read an array of objects, an object that holds one, or JSON Lines under the wrong name."""
    first = stream.readline(_CHUNK)
    while first and not first.strip():
        first = stream.readline(_CHUNK)
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"{") and not first.endswith(b"\n"):
        rest = stream.readline(values.MAX_ROW)
        first, start = first + rest, start + rest
    if start.startswith(b"{") and _is_object(start):
        yield _json_row(f"{file}:1", first)
        for row in _json_lines(file, stream, layout):
            line = int(row.where.rpartition(":")[2]) + 1
            yield row._replace(where=f"{file}:{line}")
        return
    text = _Text(first, stream)
    yield from _json_array(file, text) if start.startswith(b"[") else _json_whole(file, text)


def _json_whole(file: Path | str, text: _Text) -> Iterator[RawRow]:
    while text.more():
        if len(text.held) > values.MAX_ROW:
            raise _too_long(file, 1)
    try:
        content = json_value(text.held)
    except JsonError as error:
        yield RawRow(f"{file}:{error.line}", None, f"not JSON ({error})")
        return
    held = [v for v in content.values() if isinstance(v, list)] if isinstance(content, dict) else []
    if len(held) == 1 and held[0] and all(isinstance(item, dict) for item in held[0]):
        for number, item in enumerate(held[0], start=1):
            yield RawRow(f"{file}:row {number}", item)
    else:
        yield _object(f"{file}:1", content)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json_value(line.decode()), dict)
    except JsonError as error:
        return not error.syntax  # one that is no row
    except UnicodeDecodeError:
        return False


class _Text:
    """The text of a stream, of which JSON values are taken one by one; little of it is held."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._stream = stream
        self.held, self.place = self._decoder.decode(first), 0
        self._line, self._counted = 1, 0

    @property
    def line(self) -> int:
        """Where the place is, from 1."""
        self._line += self.held.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def more(self) -> bool:
        """Read as much again as is left; tell whether there was more."""
        chunk = self._stream.read(max(_CHUNK, len(self.held) - self.place))
        _ = self.line
        self.held = self.held[self.place :] + self._decoder.decode(chunk, not chunk)
        self.place = self._counted = 0
        return bool(chunk)

    def next_mark(self, between: re.Pattern[str]) -> str:
        """Go on to the next character that a pattern does not pass over, "" at the end."""
        while True:
            passed = between.match(self.held, self.place)
            self.place = passed.end() if passed else self.place
            if self.place < len(self.held):
                return self.held[self.place]
            if not self.more():
                return ""

    def value(self) -> Any:
        """Take the value that begins here.

        Raises:
            JsonError: there is none, or a longer one than a row may be.
        """
        at_end = False
        while True:
            sure = len(self.held) - _UNSURE
            try:
                value, end = json_value_at(self.held, self.place)
                if at_end or isinstance(value, (dict, list, str)) or end < sure:
                    self.place = end
                    return value
            except JsonError as error:
                # What breaks far before the end of what is held is not cut off there.
                cut = error.syntax and (error.place >= sure or "Unterminated" in str(error))
                if at_end or not cut:
                    self.place = error.end or self.place
                    raise
            if len(self.held) - self.place > values.MAX_ROW:
                raise JsonError(f"a row is longer than {values.MAX_ROW:,} characters")
            at_end = not self.more()
            require_few(self.held)


def _json_array(file: Path | str, text: _Text) -> Iterator[RawRow]:
    text.next_mark(_SPACES)
    text.place += 1
    while True:
        mark = text.next_mark(_BETWEEN)
        where = f"{file}:{text.line}"
        if not mark:
            yield RawRow(where, None, "not JSON (the array is not closed)")
            return
        if mark == "]":
            text.place += 1
            if text.next_mark(_SPACES):
                where = f"{file}:{text.line}"
                yield RawRow(where, None, "text behind the array; the rest is not read")
            return
        try:
            value = text.value()
        except JsonError as error:
            rest = "" if error.end else "; the rest is not read"
            yield RawRow(where, None, f"not JSON ({error}){rest}")
            if rest:
                return
            continue
        yield _object(where, value)


class _TableLines:
    """Lines of a table whose rows may go over several; together they may not be longer than one."""

    def __init__(self, file: Path | str, text: IO[str]) -> None:
        self.file, self.text = file, text
        self.begun, self.number, self.size = 1, 0, 0

    def begin(self) -> None:
        """Begin a row."""
        self.begun, self.size = self.number + 1, 0

    def __iter__(self) -> Iterator[str]:
        while line := self.text.readline(values.MAX_ROW + 1):
            self.number += 1
            self.size += len(line)
            if self.size > values.MAX_ROW:
                raise _too_long(self.file, self.begun)
            yield line


def _csv(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    csv.field_size_limit(values.MAX_ROW)
    comma = "\t" if kind_of(file) == ".tsv" else ","
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        lines = _TableLines(file, text)
        reader = csv.DictReader(iter(lines), delimiter=comma, strict=True)
        try:
            names = reader.fieldnames or ()  # reads the header
        except csv.Error as error:
            raise SourceError(f"{file}:1: the header is not CSV ({error})") from error
        twice = [name for name, count in Counter(names).items() if name.strip() and count > 1]
        if twice:
            raise SourceError(f"{file}:1: column '{twice[0]:.60}' stands twice; rename one of them")
        while True:
            lines.begin()
            where = f"{file}:{lines.begun}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(where, None, f"not CSV ({error})")
                if "unexpected end" in str(error):  # of a quote that took all lines behind it
                    for number in range(lines.begun + 1, lines.number + 1):
                        yield RawRow(f"{file}:{number}", None, f"in a quote open since {where}")
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
                where = f"{file}:row {number}"
                if isinstance(row, RowError):
                    yield RawRow(where, None, str(row))
                else:
                    yield RawRow(where, row)
    except SourceError as error:
        raise SourceError(f"{file}: {error}") from error
    except pyarrow.ArrowException as error:
        first_line = str(error).splitlines()[0]
        raise SourceError(f"{file} is not a readable {what} file: {first_line}") from error


def _undecodable(file: Path | str) -> str:
    """Return where the text of a file can't be decoded, for an error."""
    with contextlib.suppress(OSError, EOFError, zlib.error), open_packed(file) as stream:
        for number, line in capped_lines(file, stream):
            try:
                (line or b"").decode()
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""


def _text(file: Path | str, stream: BinaryIO, layout: str) -> Iterator[RawRow]:
    parts: list[str] = []
    begun, size, started = 1, 0, False
    with contextlib.closing(_parts(stream, layout)) as parts_read:
        for number, part, ends in parts_read:
            if not started:  # a document begins where its first words stand
                begun, started = number, bool(part.strip("\r\n"))
            parts.append(part)
            size += len(part)
            if ends or size > MAX_DOCUMENT:
                note = "" if ends else _CUT.format(MAX_DOCUMENT)
                text = "".join(parts).strip("\r\n")
                yield RawRow(f"{file}:{begun}", {"text": text}, note=note)
                parts, size, started = [], 0, False
    if parts:
        yield RawRow(f"{file}:{begun}", {"text": "".join(parts).strip("\r\n")})


def _parts(stream: BinaryIO, layout: str) -> Generator[tuple[int, str, bool]]:
    """Yield a text's line numbers and lines, and whether a document ends there."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        number = 1
        while line := text.readline(values.MAX_ROW):
            if layout not in ("auto", "text", "text_blank_lines"):
                yield number, line, len(line) < values.MAX_ROW or line.endswith("\n")
            elif layout == "text_blank_lines":
                yield number, line, not line.strip()
            else:
                *closed, rest = line.split(SEPARATOR)
                for part in closed:
                    yield number, part, True
                if rest:
                    yield number, rest, False
            number += line.endswith("\n")


_READERS: dict[str, Callable[[Path | str, BinaryIO, str], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
}
