"""Reads the rows of a task's file: JSON Lines, JSON, CSV, Parquet, of the disk or of a hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

from data.errors import BadRowsError, SourceError, in_words
from data.sources.formats import map_columns
from data.sources.read import SHOWN, ReadReport, located_rows
from data.sources.values import RowError
from pipeline.contract.settings import SourceSettings

Item = TypeVar("Item")


def read_rows(
    settings: SourceSettings,
    convert: Callable[[Mapping[str, Any]], Item],
    *,
    say: Callable[[str], None],
    most: int | None = None,
) -> list[Item]:
    """Return what the rows of a source are converted to; malformed ones are told and left out.

    Args:
        settings: what is read.
        convert: takes a row with columns under our names; raises `RowError` for a malformed one.
        say: takes a line for the reader.
        most: look at the first rows alone, so many.

    Raises:
        SourceError: nothing is there, or it can't be read.
        BadRowsError: more rows are malformed than `max_bad_share` allows; names file and line.
    """
    source, report = settings.source(), ReadReport()
    if source.world is not None:
        raise SourceError(f"{source.place} holds no rows of a task; name a file with path or hub")
    items: list[Item] = []
    with closing(located_rows(source, report)) as rows:
        for _, row in islice(rows, source.skip, None):
            if len(items) == source.limit or report.rows == most:
                break
            report.rows += 1
            try:
                if row.value is None:
                    raise RowError(row.problem)
                items.append(convert(map_columns(row.value, source.columns)))
            except RowError as problem:
                report.bad += 1
                if len(report.first_bad) < SHOWN:
                    report.first_bad.append(f"{row.where}: {in_words(problem)}")
    report.records = len(items)
    if report.bad > source.max_bad_share * report.rows:
        raise BadRowsError(
            f"{report.bad} of {report.rows} rows are malformed, max_bad_share allows "
            f"{source.max_bad_share:.2%}: {'; '.join(report.first_bad)}"
        )
    if not items:
        raise SourceError(f"nothing to read in {source.place}: it holds no usable rows")
    for line in report.lines():
        say(line)
    return items


def read_with_examples(
    settings: SourceSettings,
    examples: SourceSettings | None,
    convert: Callable[[Mapping[str, Any]], Item],
    *,
    say: Callable[[str], None],
    most: int | None = None,
) -> tuple[list[Item], list[Item]]:
    """Return what is asked, and what examples are drawn from: the same where none are named."""
    asked = read_rows(settings, convert, say=say, most=most)
    pool = asked if examples is None else read_rows(examples, convert, say=say, most=most)
    return asked, pool
