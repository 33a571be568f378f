"""Reads the sources that a setting names, and says what was read and what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from data.errors import SourceError
from data.records import Completion, Conversation, Record, answered, to_demonstration
from data.sources.read import ReadReport, read
from data.sources.values import RowDropped
from pipeline.contract.settings import SourceSettings

Row = TypeVar("Row")

RANKED = "rankings.jsonl"
"""Rankings that a stage leaves; who imitates learns the best of each."""
ROWS = "rows.jsonl"
"""What a stage leaves that `stage` of a source names."""
RANKINGS = "a reward model learns rankings or chosen/rejected pairs"
PROMPTS = "prompts, conversations, pairs or rankings ask something, of documents prefix_tokens"
TEXTS = "it takes text"
DEMONSTRATIONS = (
    "wanted are conversations, prompt/completion pairs or rankings, which hold an answer to imitate"
)


def read_sources(
    sources: Iterable[SourceSettings],
    convert: Callable[[Record], Row],
    *,
    where: str,
    wanted: str,
    say: Callable[[str], None],
    reports: list[ReadReport] | None = None,
) -> Iterator[Row]:
    """Yield what the records of sources are converted to; after each source say its report.

    Args:
        sources: what is read.
        convert: raises `TypeError` where a record can't be converted, and `RowDropped` where it is
            of no use, which is counted.
        where: the setting, and before it the stage: "stage sft: train".
        wanted: what the stage takes, for the error of a record that is something else.
        say: takes a line for the reader.
        reports: gets the report of each source.

    Raises:
        SourceError: a source can't be read, or its rows are something else.
    """
    for place, source in enumerate(sources):
        report = ReadReport()
        for record in read(source.source(), report=report):
            try:
                row = convert(record)
            except RowDropped as reason:
                report.dropped[str(reason)] += 1
                continue
            except TypeError as error:
                raise other_rows(f"{where}.{place}", type(record).__name__, wanted) from error
            yield row
        for line in report.lines():
            say(f"{where.rpartition(': ')[2]}.{place}: {line}")
        if reports is not None:
            reports.append(report)


def other_rows(where: str, kind: str, wanted: str) -> SourceError:
    """Return the error of a source that holds rows of another kind than the stage takes."""
    return SourceError(
        f"{where} holds {kind} rows; {wanted}: set `format` or `columns`, or name another source"
    )


def as_it_is(record: Record) -> Record:
    """Return a record, for `read_sources` where every kind of record is taken."""
    return record


def demonstration(record: Record) -> Conversation | Completion:
    """Return a record as something to imitate; drop one whose completions were all cut off."""
    if not answered(record):
        raise RowDropped("all its completions were cut off")
    return to_demonstration(record)
