"""Reads rows from local files, hub data sets and the built-in world, as records.

Everything streams: nothing is shuffled or kept. Each malformed row is counted with where it
stands, each one that is of no use with its reason, and more than a set share of malformed ones
stops the reading.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.errors import BadRowsError, SourceError, nearest
from data.records import Record
from data.sources.converting import convert
from data.sources.files import RawRow, raw_rows
from data.sources.folders import find_files
from data.sources.formats import check_format, detect, map_columns, unused
from data.sources.hub import hub_rows
from data.sources.values import RowDropped, RowError
from data.words import counted

SAMPLE = 50
"""Rows of a file that tell its format: that of most of them."""
SHOWN = 5
"""How many malformed rows are named."""
_HOPELESS = 200
"""After so many malformed rows, if they are most of what was read, reading stops at once."""


@dataclass
class ReadReport:
    """What reading one or more sources met; the caller shows it."""

    rows: int = 0
    """Rows read, malformed and dropped ones among them."""
    records: int = 0
    """Records handed out."""
    bad: int = 0
    """Malformed rows."""
    first_bad: list[str] = field(default_factory=list)
    """The first of them: file:line and what is wrong."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that are well formed but of no use, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """What else was done to rows, with how many."""
    unused: Counter[str] = field(default_factory=Counter)
    """Columns, and keys of turns, that hold something and were not read, with how many rows."""
    left_out: list[str] = field(default_factory=list)
    """Splits and files of a folder that were not read."""
    formats: dict[str, str] = field(default_factory=dict)
    """Format of each source, and whether it was given or told from the columns."""

    def lines(self) -> list[str]:
        """Return the report as lines for the console and the log."""
        told = [f"read {place} as {name}" for place, name in self.formats.items()]
        lost = self.dropped.most_common()
        told += [f"left out {what}" for what in self.left_out]
        told.append(f"{counted(self.records, 'record')} from {counted(self.rows, 'row')}")
        told += [f"dropped {counted(count, 'row')}: {why}" for why, count in lost]
        told += [f"{what} ({counted(count, 'time')})" for what, count in self.notes.most_common()]
        if self.unused:
            rows = self.unused.most_common()
            named = (f"{what} ({counted(count, 'row')})" for what, count in rows)
            told.append("not used: " + ", ".join(named))
        if self.bad:
            told.append(
                f"{counted(self.bad, 'malformed row')}, the first: " + "; ".join(self.first_bad)
            )
        return told


def read(
    *,
    path: str | Sequence[str] | None = None,
    hub: str | None = None,
    hub_name: str | None = None,
    hub_split: str = "train",
    hub_revision: str | None = None,
    hub_files: str | Sequence[str] | None = None,
    world: str | None = None,
    world_seed: int = 0,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    skip: int = 0,
    max_bad_share: float = 0.01,
    report: ReadReport | None = None,
) -> Iterator[Record]:
    """Yield the records of one source.

    Args:
        path: file, folder or glob, or several.
        hub: id of a hub data set, or a local folder in its layout.
        hub_name: its configuration.
        hub_split: its split, or that of a folder that holds several.
        hub_revision: its commit, tag or branch.
        hub_files: which of its files to read.
        world: part of the built-in world.
        world_seed: the world's seed.
        format: one of `data.sources.formats.FORMATS`, or "auto" to tell it from the columns.
        columns: our name of a column -> its name, dotted path or template in the source.
        limit: at most so many records.
        skip: pass over so many records at the start.
        max_bad_share: share of malformed rows above which reading ends in an error.
        report: where the counts go.

    Raises:
        SourceError: nothing there, unreadable, or of no known format.
        BadRowsError: too many rows are malformed; names the first.
    """
    one_origin(path, hub, world)
    check_format(format)
    report = ReadReport() if report is None else report
    check: Callable[[], object] = bool
    rows: Generator[tuple[str, RawRow]] | None = None
    if world is not None:
        records = _world_records(world, world_seed, report)
    else:
        rows = (
            hub_rows(hub, hub_name, hub_split, hub_revision, hub_files)
            if hub is not None
            else _file_rows(paths_of(path), format, hub_split, report)
        )
        reading = _Reading(
            format=format, columns=columns, max_bad_share=max_bad_share, report=report
        )
        records = reading.records(rows)
        check = reading.check
    # Closed here, so that no file stays open where reading ends early or in an error.
    with contextlib.closing(records), contextlib.closing(rows or records):
        yield from _window(records, skip, limit, report, check, place=place_of(path, hub, world))


def place_of(path: str | Sequence[str] | None, hub: str | None, world: str | None) -> str:
    """Return what a source is called in errors."""
    return f"world:{world}" if world is not None else hub or ", ".join(paths_of(path))


def one_origin(*origins: object) -> None:
    """Refuse a source that names not exactly one of path, hub and world."""
    if sum(origin is not None for origin in origins) != 1:
        raise SourceError("a source names exactly one of path, hub and world")


def paths_of(path: str | Sequence[str] | None) -> list[str]:
    """Return the paths of a source as a list."""
    return [path] if isinstance(path, str) else list(path or [])


def _window(
    records: Iterator[Record],
    skip: int,
    limit: int | None,
    report: ReadReport,
    check: Callable[[], object],
    *,
    place: str,
) -> Iterator[Record]:
    """Yield the records from `skip` on, at most `limit`; an empty source is an error."""
    seen = given = 0
    for record in records:
        seen += 1
        if seen <= skip:
            continue
        given += 1
        report.records += 1
        yield record
        if limit is not None and given >= limit:
            break
    check()
    if given == 0:
        why = f"skip is {skip} and it holds {seen} records" if seen else "it holds no usable rows"
        told = "; ".join(f"{count} dropped: {what}" for what, count in report.dropped.items())
        raise SourceError(f"nothing to read in {place}: {why}{'; ' + told if told else ''}")


@dataclass
class _Reading:
    """The reading of one source: its format once it is known, and the count of what was bad."""

    format: str
    columns: Mapping[str, str] | None
    max_bad_share: float
    report: ReadReport
    rows: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    mapped: bool = False
    by_origin: dict[str, str] = field(default_factory=dict)

    def records(self, rows: Iterator[tuple[str, RawRow]]) -> Generator[Record]:
        """Yield the records of rows; most of the first rows of a file tell its format."""
        for origin, held in itertools.groupby(rows, key=lambda pair: pair[0]):
            row_of = (row for _, row in held)
            sample = self._sample(row_of)
            if sample:
                self._settle(origin, sample)
            for row in itertools.chain(sample, row_of):
                record = self.take(origin, row)
                if record is not None:
                    yield record

    def _sample(self, rows: Iterator[RawRow]) -> list[RawRow]:
        """Return the first rows of a file; of documents, which may be large, the first alone."""
        sample: list[RawRow] = []
        for row in itertools.islice(rows, SAMPLE):
            sample.append(row)
            if row.value is not None and list(row.value) == ["text"]:
                break
        return sample

    def _settle(self, origin: str, sample: Sequence[RawRow]) -> None:
        """Settle the format of a file by its first rows; a file of bad rows has none yet."""
        if self.format != "auto":
            self._note_format(origin, self.format, "given")
            return
        told: Counter[str] = Counter()
        problem: SourceError | None = None
        for row in sample:
            if row.value is None:
                continue
            try:
                told[detect(self._columns(row), self.columns)] += 1
            except SourceError as error:
                problem = problem or error
            except RowError:
                continue
        if told:
            self._note_format(origin, told.most_common(1)[0][0], "told from its columns")
        elif problem is not None:
            placed = str(problem).startswith(origin)  # at a line of it
            raise SourceError(str(problem) if placed else f"{origin}: {problem}") from None

    def take(self, origin: str, row: RawRow) -> Record | None:
        """Return the row's record, or None after counting why there is none."""
        self.rows += 1
        self.report.rows += 1
        if row.note:
            self.report.notes[row.note] += 1
        try:
            if row.value is None:
                raise RowError(row.problem)
            columns = self._columns(row)
            name, told = self._formats_of(origin, columns)
            record = convert(
                columns,
                name,
                default_id=_short(row.where),
                columns=self.columns,
                told=self.format != "auto",
            )
            if told != name:
                raise RowError(
                    f"its columns {', '.join(columns)} tell {told}, those of most rows {name}; "
                    "name one with `format`"
                )
            self.report.unused.update(set(unused(columns, name, self.columns)))
            return record
        except RowDropped as reason:
            self.report.dropped[str(reason)] += 1
        except RowError as problem:
            self._count_bad(row.where, str(problem))
        return None

    def _columns(self, row: RawRow) -> dict[str, Any]:
        assert row.value is not None
        try:
            columns = map_columns(row.value, self.columns)
        except RowError as problem:
            if self.mapped:
                raise
            raise SourceError(f"{row.where}: {problem}") from problem
        self.mapped = True
        return columns

    def _formats_of(self, origin: str, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return the format of the row's file, and the one that the row itself tells."""
        if self.format != "auto":
            return self.format, self.format
        try:
            told = detect(row, self.columns)
        except SourceError as error:
            if origin not in self.by_origin:
                raise SourceError(f"{origin}: {error}") from None
            return self.by_origin[origin], "no known format"
        if origin not in self.by_origin:
            self._note_format(origin, told, "told from its columns")
        return self.by_origin[origin], told

    def _note_format(self, origin: str, name: str, how: str) -> None:
        other = next((place for place, was in self.by_origin.items() if was != name), None)
        if other is not None:
            raise SourceError(
                f"one source holds two formats: {other} is {self.by_origin[other]}, {origin} "
                f"is {name}; name one with `format` or read them as two sources"
            )
        self.by_origin[origin] = name
        self.report.formats[origin] = f"{name} ({how})"

    def _count_bad(self, where: str, problem: str) -> None:
        self.bad += 1
        self.report.bad += 1
        if self.bad <= SHOWN:
            self.first_bad.append(f"{where}: {problem}")
        if len(self.report.first_bad) < SHOWN:
            self.report.first_bad.append(f"{where}: {problem}")
        if self.bad >= _HOPELESS and 2 * self.bad > self.rows:
            self.check()

    def check(self) -> None:
        """Raise when more rows were malformed than allowed."""
        if self.bad > self.max_bad_share * self.rows:
            more = self.bad - len(self.first_bad)
            raise BadRowsError(
                f"{self.bad} of {self.rows} rows are malformed, max_bad_share allows "
                f"{self.max_bad_share:.2%}: {'; '.join(self.first_bad)}"
                + (f"; and {more} more" if more else "")
            )


def _short(where: str) -> str:
    return where.rpartition("/")[2]


def _file_rows(
    paths: list[str], format: str, split: str, report: ReadReport
) -> Generator[tuple[str, RawRow]]:
    # All paths are looked up before the first row is read, so that a wrong one stops at once.
    found = [find_files(path, split) for path in paths]
    report.left_out += [what for one in found for what in one.left_out]
    for file in (file for one in found for file in one.files):
        with contextlib.closing(raw_rows(file, format)) as rows:
            for row in rows:
                yield str(file), row


def _world_records(part: str, seed: int, report: ReadReport) -> Generator[Record]:
    module = world_module(part)
    report.formats[f"world:{part}"] = "records (built in)"
    for record in module.World(seed).records(part):
        report.rows += 1
        yield record


def world_module(part: str) -> Any:
    """Return the module of the world, which has this part."""
    module = importlib.import_module("data.world")
    if part not in module.PARTS:
        known = ", ".join(module.PARTS)
        hint = nearest(part, module.PARTS)
        raise SourceError(f"the world has no part '{part}'; known: {known}.{hint}")
    return module
