"""Rows of a data set of the Hugging Face hub, or of a local folder in its layout.

`datasets` finds the files of a split. Tables, JSON and CSV are then read as local files are, since
the library guesses types anew: "007" becomes 7, "null" and "NA" nothing, "2025-01-01" a time. Other
kinds of file, and what a data set's card says on how to read them, are left to the library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from data.errors import Interrupted, SourceError
from data.network import hub_trouble
from data.sources.files import RawRow, raw_rows, readable
from data.sources.folders import SAVED, SAVED_SPLITS, find_files, kind_of
from data.sources.source import Source
from data.storage import expand

_AS_FILES = {"json": ("field",), "csv": ("sep", "delimiter", "names"), "parquet": (), "arrow": ()}
"""Builders of `datasets` whose files we read, unless the card sets these."""


def hub_rows(source: Source) -> Generator[tuple[str, RawRow]]:
    """Yield the raw rows of a hub data set with its name.

    Raises:
        SourceError: there is no such data set, split or file, or it can't be reached.
    """
    hub, split = str(source.hub), source.hub_split
    if not _is_here(hub):
        hub_trouble()  # half a minute of tries is spared where there is no network
    place = f"{hub}[{split}]"
    try:
        files = _own_files(hub, source)
        if files is None:
            yield from _library_rows(place, source)
            return
        for file in files:
            with contextlib.closing(raw_rows(file)) as rows:
                for row in rows:
                    yield place, row
    except (SourceError, Interrupted):
        raise
    except Exception as error:
        raise SourceError(_problem(hub, split, error)) from error


def _is_here(hub: str) -> bool:
    try:
        return expand(hub).exists()
    except (OSError, RuntimeError):  # a name that no file can have
        return False


def _own_files(hub: str, source: Source) -> list[Path | str] | None:
    """Return the files of a split that we read ourselves, None where the library has to."""
    import datasets

    folder, split = expand(hub), source.hub_split
    if not source.hub_files and any((folder / mark).is_file() for mark in (SAVED, SAVED_SPLITS)):
        return list(find_files(hub, split).files)
    builder = datasets.load_dataset_builder(hub, **_named(source))
    kind, config = type(builder).__module__.split(".")[-2], builder.config
    files = getattr(config, "data_files", None)
    if kind not in _AS_FILES or not files or config.features is not None:
        return None
    usual = type(config)(name=config.name)
    set_ = [key for key in _AS_FILES[kind] if getattr(config, key) != getattr(usual, key)]
    if set_ and not all(kind_of(str(file)) == ".tsv" for file in files.get(split, [])):
        return None
    if split not in files:
        raise ValueError(f'Unknown split "{split}". Should be one of {list(files)}.')
    places: list[Path | str] = [
        place if "://" in place else Path(place) for place in map(str, files[split])
    ]
    return places if all(kind_of(place) for place in places) else None


def _library_rows(place: str, source: Source) -> Generator[tuple[str, RawRow]]:
    import datasets

    stream = datasets.load_dataset(
        source.hub, split=source.hub_split, streaming=True, **_named(source)
    )
    for number, row in enumerate(stream, start=1):
        yield place, readable(RawRow(f"{place}:row {number}", dict(row)))


def _named(source: Source) -> dict[str, Any]:
    """Return what of a data set is read, as `datasets` takes it."""
    return {
        "name": source.hub_name,
        "revision": source.hub_revision,
        "data_files": source.listed_files or None,
    }


def _problem(hub: str, split: str, error: Exception) -> str:
    first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
    trouble = None if _is_here(hub) else hub_trouble()
    if trouble is not None:
        return (
            f"can't read data set '{hub:.200}', of which the cache alone was used ({trouble}): "
            f"{first_line}; without a network point `path` at local files instead"
        )
    if isinstance(error, ConnectionError) or "offline" in first_line.lower():
        return (
            f"can't reach the hub for data set '{hub:.200}': {first_line}; without a network point "
            "`path` at local files instead"
        )
    return f"can't read data set '{hub:.200}', split '{split:.80}': {first_line}"
