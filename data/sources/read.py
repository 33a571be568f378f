"""Reads rows from local files, hub data sets and the built-in world, as records.

Everything streams: nothing is shuffled, and nothing kept but parts of the world, which take as long
to make as some stages run. Each malformed row is counted with where it stands, each one that is of
no use with its reason, and more than a set share of malformed ones stops the reading.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from data.errors import BadRowsError, SourceError, in_words, nearest
from data.records import Record, as_chat, with_instruction
from data.sources.converting import convert
from data.sources.files import RawRow, raw_rows
from data.sources.folders import find_files
from data.sources.formats import detect, map_columns, unused
from data.sources.hub import hub_rows
from data.sources.source import Source
from data.sources.split import of_part
from data.sources.values import RowDropped, RowError, listed
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
        sentences = [f"read {place} as {name}" for place, name in self._formats()]
        lost = self.dropped.most_common()
        sentences += [f"left out {what}" for what in self.left_out]
        sentences.append(f"{counted(self.records, 'record')} from {counted(self.rows, 'row')}")
        sentences += [f"dropped {counted(count, 'row')}: {why}" for why, count in lost]
        sentences += [
            f"{what} ({counted(count, 'time')})" for what, count in self.notes.most_common()
        ]
        if self.unused:
            rows = self.unused.most_common()
            named = (f"{what} ({counted(count, 'row')})" for what, count in rows)
            sentences.append("not used: " + ", ".join(named))
        if self.bad:
            sentences.append(
                f"{counted(self.bad, 'malformed row')}, the first: " + "; ".join(self.first_bad)
            )
        # Names of columns may hold half a character, which no console can print.
        return [line.encode("utf-8", "backslashreplace").decode() for line in sentences]

    def _formats(self) -> Iterator[tuple[str, str]]:
        """Yield places and their formats, many files of one format together."""
        if len(self.formats) <= SAMPLE:
            yield from self.formats.items()
            return
        for name, count in Counter(self.formats.values()).items():
            place = next(place for place, has in self.formats.items() if has == name)
            yield f"{place} and {counted(count - 1, 'other file')}", name


def read(source: Source, *, report: ReadReport | None = None) -> Iterator[Record]:
    """Yield the records of a source; the report gets the counts.

    Raises:
        SourceError: nothing there, unreadable, or of no known format.
        BadRowsError: too many rows are malformed; names the first.
    """
    with contextlib.closing(read_located(source, report=report)) as located:
        for _, record in located:
            yield record


def read_located(
    source: Source, *, report: ReadReport | None = None
) -> Generator[tuple[str, Record]]:
    """Yield the records of a source, each with its file and line or row (`file:line`).

    Raises:
        SourceError: nothing there, unreadable, or of no known format.
        BadRowsError: too many rows are malformed; names the first.
    """
    report = ReadReport() if report is None else report
    if source.world is not None:
        with contextlib.closing(_world_records(source, report)) as records:
            yield from _window(records, source, report)
        return
    reading = _Reading(source, report)
    # Closed here, so that no file stays open where reading ends early or in an error.
    with (
        contextlib.closing(located_rows(source, report)) as rows,
        contextlib.closing(reading.records(rows)) as records,
    ):
        yield from _window(records, source, report, check=reading.check)


def located_rows(source: Source, report: ReadReport) -> Generator[tuple[str, RawRow]]:
    """Yield the raw rows of a path or a hub data set, each with its file or the set's name.

    Raises:
        SourceError: nothing there, or unreadable.
    """
    if source.hub is not None:
        yield from hub_rows(source)
        return
    # All paths are looked up before the first row is read, so that a wrong one stops at once.
    found = [find_files(path, source.hub_split) for path in source.paths]
    report.left_out += [what for one in found for what in one.left_out]
    for file in (file for one in found for file in one.files):
        with contextlib.closing(raw_rows(file, source.format)) as rows:
            for row in rows:
                yield str(file), row


def _window(
    records: Iterator[tuple[str, Record]],
    source: Source,
    report: ReadReport,
    *,
    check: Callable[[], object] = bool,
) -> Iterator[tuple[str, Record]]:
    """Yield the records from `skip` on, at most `limit`; an empty source is an error."""
    seen = given = others = 0
    for where, record in records:
        if not of_part(record, source.part, share=source.heldout_share):
            others += 1
            continue
        seen += 1
        if seen <= source.skip:
            continue
        given += 1
        report.records += 1
        yield where, _changed(record, source)
        if given == source.limit:
            break
    check()
    if given == 0:
        why = "it holds no usable rows"
        if seen:
            why = f"skip is {source.skip} and it holds {seen} records"
        elif others:
            why = (
                f"none of its {counted(others, 'record')} is of part: {source.part} "
                f"(heldout_share {source.heldout_share:g}); change that share"
            )
        lost = [f"{count} dropped: {what}" for what, count in report.dropped.items()]
        raise SourceError(f"nothing to read in {source.place}: {'; '.join([why, *lost])}")


def _changed(record: Record, source: Source) -> Record:
    """Return a record as the source asks for it: as turns of a chat, with its instruction."""
    setting = "chat"
    try:
        record = as_chat(record) if source.chat else record
        setting = "instruction"
        return with_instruction(record, source.instruction) if source.instruction else record
    except TypeError as error:
        raise SourceError(
            f"{source.place}: {error}; `{setting}` is for rows that do, leave it out"
        ) from None


@dataclass
class _Reading:
    """The reading of one source: its format once it is known, and the count of what was bad."""

    source: Source
    report: ReadReport
    rows: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    mapped: bool = False
    by_origin: dict[str, str] = field(default_factory=dict)

    def records(self, rows: Iterator[tuple[str, RawRow]]) -> Generator[tuple[str, Record]]:
        """Yield the records of rows; most of the first rows of a file tell its format."""
        for origin, held in itertools.groupby(rows, key=lambda pair: pair[0]):
            row_of = (row for _, row in held)
            sample = self._sample(row_of)
            if sample:
                self._settle(origin, sample)
            for row in itertools.chain(sample, row_of):
                record = self.take(origin, row)
                if record is not None:
                    yield row.where, record

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
        if self.source.format != "auto":
            self._note_format(origin, self.source.format, "given")
            return
        formats: Counter[str] = Counter()
        problem: SourceError | None = None
        for row in sample:
            if row.value is None:
                continue
            try:
                formats[detect(self._columns(row), self.source.columns)] += 1
            except SourceError as error:
                problem = problem or error
            except RowError:
                continue
        if formats:
            self._note_format(origin, formats.most_common(1)[0][0], "told from its columns")
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
            name, own = self._formats_of(origin, columns)
            record = convert(
                columns,
                name,
                default_id=_short(row.where),
                columns=self.source.columns,
                format_named=self.source.format != "auto",
            )
            if own != name:
                raise RowError(
                    f"its columns {listed(columns)} tell {own}, those of most rows {name}; "
                    "name one with `format`"
                )
            self.report.unused.update(set(unused(columns, name, self.source.columns)))
            return record
        except RowDropped as reason:
            self.report.dropped[str(reason)] += 1
        except RowError as problem:
            self._count_bad(row.where, in_words(problem))
        return None

    def _columns(self, row: RawRow) -> dict[str, Any]:
        assert row.value is not None
        try:
            columns = map_columns(row.value, self.source.columns)
        except RowError as problem:
            if self.mapped:
                raise
            raise SourceError(f"{row.where}: {in_words(problem)}") from problem
        self.mapped = True
        return columns

    def _formats_of(self, origin: str, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return the format of the row's file, and the one that the row itself tells."""
        if self.source.format != "auto":
            return self.source.format, self.source.format
        try:
            own = detect(row, self.source.columns)
        except SourceError as error:
            if origin not in self.by_origin:
                raise SourceError(f"{origin}: {error}") from None
            return self.by_origin[origin], "no known format"
        if origin not in self.by_origin:
            self._note_format(origin, own, "told from its columns")
        return self.by_origin[origin], own

    def _note_format(self, origin: str, name: str, how: str) -> None:
        other = next(iter(self.by_origin), origin)  # all before are of one format
        if self.by_origin.get(other, name) != name:
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
        if self.bad > self.source.max_bad_share * self.rows:
            more = self.bad - len(self.first_bad)
            raise BadRowsError(
                f"{self.bad} of {self.rows} rows are malformed, max_bad_share allows "
                f"{self.source.max_bad_share:.2%}: {'; '.join(self.first_bad)}"
                + (f"; and {more} more" if more else "")
            )


def _short(where: str) -> str:
    return where.rpartition("/")[2]


def _world_records(source: Source, report: ReadReport) -> Generator[tuple[str, Record]]:
    assert source.world is not None
    records = _world_part(source.world, source.world_seed)
    report.formats[source.place] = "records (built in)"
    for record in records:
        report.rows += 1
        yield f"world:{record.id}", record


@lru_cache(maxsize=16)
def _world_part(part: str, seed: int) -> Sequence[Any]:
    return tuple(world_module(part).World(seed).records(part))


def world_module(part: str) -> Any:
    """Return the module of the world, which has this part."""
    module = importlib.import_module("data.world")
    if part not in module.PARTS:
        known = ", ".join(module.PARTS)
        hint = nearest(part, module.PARTS)
        raise SourceError(f"the world has no part '{part}'; known: {known}.{hint}")
    return module
