"""Rows of Parquet and Arrow tables, with the JSON that `datasets` keeps in some of their columns.

A column of mixed types is written as JSON text, where text that reads as JSON (`007`, `null`) is
written as it is: read back by the library it is a number, or nothing. Here text stays text, and
lists and objects inside of turns become what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from data.errors import SourceError, in_words
from data.sources import values
from data.sources.values import JsonError, RowError, json_value

_ROWS = 1024
_DECODED = 2**30
"""Bytes that rows taken at once may come to; what a dictionary holds once may be in each."""


def parquet_rows(source: Any) -> Iterator[dict[str, Any] | RowError]:
    """Yield the rows of a Parquet file, given by its path or as a stream that can seek.

    A row that Python can't hold is what is wrong with it.

    Raises:
        SourceError: two columns have one name, or its rows are too long.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source) as table:
        groups = [table.metadata.row_group(n) for n in range(table.metadata.num_row_groups)]
        longest = max((g.total_byte_size // g.num_rows for g in groups if g.num_rows), default=0)
        largest = max((g.total_byte_size for g in groups), default=0)
        if longest > values.MAX_ROW:
            raise SourceError(f"its rows are longer than {values.MAX_ROW:,} bytes")
        size = min(_rows_of(longest, values.MAX_ROW), _rows_of(largest, _DECODED))
        _require_distinct(table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=size):
            yield from _rows(batch)


def arrow_rows(stream: BinaryIO) -> Iterator[dict[str, Any] | RowError]:
    """Yield the rows of an Arrow file, a stream as `datasets` writes them or a file with a foot.

    See `parquet_rows`.
    """
    import pyarrow

    try:
        batches: Any = pyarrow.ipc.open_stream(stream)
    except pyarrow.ArrowInvalid:
        stream.seek(0)
        reader = pyarrow.ipc.open_file(stream)
        batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
    for batch in batches:
        _require_distinct(batch.schema.names)
        size = _rows_of(batch.nbytes, _DECODED)
        for start in range(0, batch.num_rows, size):
            yield from _rows(batch.slice(start, size))


def _rows_of(largest: int, most: int) -> int:
    """Return how many rows of at most `largest` bytes are taken at once."""
    return max(1, min(_ROWS, most // max(1, largest)))


def _require_distinct(names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SourceError(f"column '{twice[0]}' stands twice; rename one of the two")


def _rows(batch: Any) -> Iterator[dict[str, Any] | RowError]:
    encoded = {field.name: field.type for field in batch.schema if _holds_json(field.type)}
    for row in _as_python(batch):
        if isinstance(row, dict):
            for name, kind in encoded.items():
                row[name] = _decoded(row[name], kind, inside=False)
            if any(isinstance(v, (str, bytes)) and len(v) > values.MAX_ROW for v in row.values()):
                yield RowError(f"longer than {values.MAX_ROW:,} characters")
                continue
        yield row


def _as_python(batch: Any) -> Iterator[dict[str, Any] | RowError]:
    """Yield rows, one by one where one of them can't be had: a time far off, text that is none."""
    try:
        yield from batch.to_pylist()
    # An unknown time zone is a ValueError, or where pytz is installed a KeyError.
    except (ValueError, OverflowError, KeyError) as error:
        if batch.num_rows == 1:
            yield RowError(f"a value can't be read: {in_words(error)}")
            return
        for place in range(batch.num_rows):
            yield from _as_python(batch.slice(place, 1))


def _children(kind: Any) -> dict[str, Any]:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
    if any(
        test(kind)
        for test in (
            pyarrow.types.is_list,
            pyarrow.types.is_large_list,
            pyarrow.types.is_fixed_size_list,
        )
    ):
        return {"": kind.value_type}
    return {}


def _is_json(kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.json"


def _holds_json(kind: Any) -> bool:
    return _is_json(kind) or any(map(_holds_json, _children(kind).values()))


def _decoded(value: Any, kind: Any, *, inside: bool) -> Any:
    if value is None or not _holds_json(kind):
        return value
    if _is_json(kind):
        return _meant(value, inside=inside)
    children = _children(kind)
    if "" in children:
        return [_decoded(one, children[""], inside=True) for one in value]
    return {name: _decoded(held, children[name], inside=True) for name, held in value.items()}


def _meant(text: str, *, inside: bool) -> Any:
    """Return the value that JSON text was written for.

    A whole column of lists or objects stays text, which whoever reads such a column takes: it may
    as well be an answer that is JSON.
    """
    opens = text.lstrip()[:1]
    if opens == '"' or (inside and opens in ("[", "{")):
        try:
            value = json_value(text)
        except JsonError:
            return text
        nested = isinstance(value, dict) or (
            isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
        )
        return value if isinstance(value, str) or nested else text
    return text
