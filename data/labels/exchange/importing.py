"""Labels from files or the hub: our own exports, rankings, pairs, HH dialogues, OASST, tables.

Our own exports come back exactly, with ids, orders and times. What other files hold becomes labels
of an annotator of kind `imported`, with mode `rank`, since nobody was asked for ratings or a
strength; the order shown is not known (`order` is empty). Rows with the same prompt and the same
completions are labels of one task. Of a pair, the completions stand in the order of a hash: as a
file has them, the better one always comes first.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import BadRowsError, LabelError, SourceError, in_words
from data.labels.exchange.rankings_file import from_row, is_label, own_meta
from data.labels.exchange.tables.columns import Table
from data.labels.exchange.tables.judgements import told_by_columns
from data.labels.exchange.tables.rows import TableReader
from data.labels.names import plain_name
from data.labels.records import (
    Annotator,
    Assignment,
    Label,
    LabelRow,
    NewTask,
    Submission,
    Task,
)
from data.records import ENDED, Ranking, prompt_hash
from data.sources.converting import convert
from data.sources.files import RawRow
from data.sources.formats import detect, unused
from data.sources.oasst import Forest, is_message, is_tree, tree_rankings
from data.sources.read import SHOWN, ReadReport, located_rows
from data.sources.source import Source
from data.sources.values import RowDropped, RowError, as_text, listed

FORMATS = {
    "labels": "our own lossless export",
    "rankings": "prompt or messages + completions + ranks or scores",
    "preference": "chosen + rejected (+ prompt), strings or messages",
    "hh": "chosen + rejected as Human:/Assistant: transcripts",
    "oasst": "OpenAssistant trees with ranked replies, a tree a row or a message a row",
}
"""What can be imported."""
HUB = "hub:"
"""Begins the name of a source that is a hub data set."""


class ImportedLabel(NamedTuple):
    """A label from a file: what a store needs, and all that the file says of it.

    Attributes:
        task: to be stored once by its key.
        annotator: who gave it; ids are those of the file.
        submission: what was said; its key is the same whenever the file is imported.
        row: the whole label.
    """

    task: NewTask
    annotator: Annotator
    submission: Submission
    row: LabelRow


def read_labels(
    source: str,
    *,
    when: datetime,
    campaign: str = "imported",
    annotator: str = "imported",
    format: str = "auto",
    max_bad_share: float = 0.01,
    hub_split: str = "train",
    table: Table | None = None,
    report: ReadReport | None = None,
) -> Iterator[ImportedLabel]:
    """Yield the labels of a file, folder, glob or hub data set.

    Messages of OASST that stand a row each are put together to their trees, so that labels of these
    come last, when all rows are read.

    Args:
        source: where to read; `hub:ID` is a data set of the hub.
        when: time of labels whose file tells none.
        campaign: name of the campaign of such labels.
        annotator: who gave labels whose file names nobody.
        format: one of `FORMATS`, or "auto" to tell it of each row.
        max_bad_share: share of malformed rows above which reading ends in an error.
        hub_split: of a hub data set, or of a folder that holds several.
        table: what is told of a table's columns.
        report: where the counts go.

    Raises:
        SourceError: nothing there, unreadable, or of a format that holds no labels.
        BadRowsError: too many rows are malformed; names the first.
    """
    if format != "auto" and format not in FORMATS:
        raise SourceError(f"unknown format '{format}' of labels; known: auto, {', '.join(FORMATS)}")
    report = ReadReport() if report is None else report
    foreign = _Foreign(when=when, campaign=campaign, annotator=annotator)
    reader = None if table is None else TableReader(source, table, report)
    reading = _Reading(foreign, format, report, reader)
    hub = source.removeprefix(HUB) if source.startswith(HUB) else None
    path = (source if table is None else _answered(source)) if hub is None else None
    for place, raw in located_rows(Source(path=path, hub=hub, hub_split=hub_split), report):
        report.rows += 1
        yield from reading.counted(raw.where, reading.labels(place, raw))
    for tree in reading.forest.trees(dropped=report.dropped):
        rows = reading.of_tree(tree, tree["message_tree_id"])
        yield from reading.counted(f"tree {tree['message_tree_id']}", rows)
    if report.bad > max_bad_share * report.rows:
        raise BadRowsError(
            f"{report.bad} of {report.rows} rows are malformed, max_bad_share allows "
            f"{max_bad_share:.2%}: {'; '.join(report.first_bad)}"
        )
    if reader is not None:
        reader.check()
    if not report.records:
        dropped = "; ".join(f"{count} dropped: {why}" for why, count in report.dropped.items())
        raise SourceError(f"no labels in {source}{': ' + dropped if dropped else ''}")


def _answered(source: str) -> str:
    """Return which files of a folder hold answers: of Potato's folder, those of its annotators."""
    pattern = Path(source) / "*" / "user_state.json"
    return str(pattern) if glob.glob(str(pattern)) else source


def require_names(source: str, *, campaign: str, annotator: str) -> None:
    """Refuse a label's names that the store does not take.

    Raises:
        SourceError: names the source and what is wrong.
    """
    try:
        as_text(campaign, "campaign")
        plain_name(annotator)
    except (LabelError, RowError) as error:
        raise SourceError(f"{source}: {error}") from error


class _Foreign(NamedTuple):
    """What is said of labels whose file doesn't say it."""

    when: datetime
    campaign: str
    annotator: str


class _Reading:
    """The reading of one source: its format, the messages met so far, and what was of no use."""

    def __init__(
        self,
        foreign: _Foreign,
        format: str,
        report: ReadReport,
        table: TableReader | None,
    ) -> None:
        self.foreign, self.format, self.report, self.table = foreign, format, report, table
        self.forest = Forest()

    def counted(self, where: str, rows: Iterator[LabelRow]) -> Iterator[ImportedLabel]:
        """Yield labels, and count what keeps a row from having any."""
        report = self.report
        try:
            for row in rows:
                report.records += 1
                new = row.assignment.task.new
                yield ImportedLabel(new, row.annotator, row.label.submission, row)
        except RowDropped as reason:
            report.dropped[str(reason)] += 1
        except RowError as problem:
            report.bad += 1
            if len(report.first_bad) < SHOWN:
                report.first_bad.append(f"{where}: {in_words(problem)}")

    def labels(self, place: str, raw: RawRow) -> Iterator[LabelRow]:
        """Yield the labels of a row; a message of OASST is kept until all are there."""
        if raw.value is None:
            raise RowError(raw.problem)
        if self.table is not None:
            self.report.formats.setdefault(place, "a table (--columns)")
            yield from self._of_table(self.table, raw.value, raw.where.rpartition("/")[2])
            return
        auto = self.format == "auto"
        name = _format_of(raw) if auto else self.format
        how = "told from its columns" if auto else "given"
        self.report.formats.setdefault(place, f"{name} ({how})")
        where = raw.where.rpartition("/")[2]
        if name == "labels":
            yield from_row(raw.value)
        elif name == "oasst" and is_message(raw.value):
            self.forest.add(raw.value)
        elif name == "oasst":
            yield from self.of_tree(raw.value, where)
        else:
            record = convert(raw.value, name, default_id=where, format_named=not auto)
            assert isinstance(record, Ranking)
            self.report.unused.update(set(unused(raw.value, name)))
            if record.probabilities:
                self.report.notes["a soft label came in by its ranks alone"] += 1
            yield _foreign_row(record, self.foreign, f"{where}:0")

    def _of_table(
        self, table: TableReader, row: Mapping[str, Any], where: str
    ) -> Iterator[LabelRow]:
        """Yield a label for each judgement in a table's row."""
        for number, ranking in enumerate(table.rows(row)):
            # Exports of other tools grow at any place: the same judgement is on another line then.
            which = f"{ranking.get('id', f'{where}:{number}')}:{','.join(table.questions)}"
            try:
                record = convert(ranking, "rankings", default_id=where, format_named=True)
                assert isinstance(record, Ranking)
                yield _foreign_row(record, self.foreign, which)
            except RowDropped as reason:
                self.report.dropped[str(reason)] += 1

    def of_tree(self, tree: Mapping[str, Any], where: str) -> Iterator[LabelRow]:
        """Yield a label for each ranking of a tree."""
        for place, ranking in enumerate(tree_rankings(tree, dropped=self.report.dropped)):
            yield _foreign_row(ranking, self.foreign, f"{where}:{place}")


def _format_of(raw: RawRow) -> str:
    assert raw.value is not None
    if is_label(raw.value):
        return "labels"
    if is_tree(raw.value) or is_message(raw.value):
        return "oasst"
    try:
        name = detect(raw.value)
    except SourceError:
        name = ""
    if name in FORMATS:
        return name
    columns = f"its columns are {listed(raw.value)}"
    if told := told_by_columns(raw.value):
        raise SourceError(f"{raw.where}: {told}, see RESEARCHERS.md; {columns}")
    if not name:
        raise SourceError(
            f"{raw.where}: can't tell the format from the columns; a table comes in by --columns "
            f'"prompt=COLUMN,a=COLUMN,b=COLUMN,winner=COLUMN", see RESEARCHERS.md; {columns}'
        )
    known = "; ".join(f"{one}: {what}" for one, what in FORMATS.items())
    raise SourceError(
        f"{raw.where}: rows of format {name} hold no labels; known: {known}; a table comes in by "
        f'--columns "prompt=COLUMN,a=COLUMN,b=COLUMN,winner=COLUMN"'
    )


def _foreign_row(ranking: Ranking, foreign: _Foreign, where: str) -> LabelRow:
    if len(ranking.completions) > 9:
        raise RowDropped("more than nine completions")
    if len(set(ranking.completions)) < len(ranking.completions):
        raise RowDropped("two completions are the same")
    if len(ranking.completions) == 2:
        ranking = _in_order_of_hash(ranking)
    key = _digest([prompt_hash(ranking.prompt), ranking.completions])
    name = ranking.annotator or foreign.annotator
    annotator = Annotator(id=_digest(["annotator", name])[:22], name=name, kind="imported")
    label_id = _digest([key, annotator.id, where])
    assignment = Assignment(
        id=_digest(["assignment", label_id])[:22],
        task=Task(
            id=key,
            campaign_id=foreign.campaign,
            new=NewTask(
                key=key,
                prompt=ranking.prompt,
                completions=ranking.completions,
                policies=ranking.policies,
                meta={
                    **own_meta(ranking.meta),
                    **({ENDED: ranking.ended} if ranking.ended else {}),
                },
            ),
        ),
        annotator_id=annotator.id,
        purpose="label",
        order=[],
        strategy="random",
        probability=1.0,
        leased_until=foreign.when,
        guidelines_version=1,
    )
    label = Label(
        id=label_id[:22],
        assignment_id=assignment.id,
        revision=1,
        submission=Submission(key=label_id, ranks=ranking.ranks),
        created_at=foreign.when,
    )
    return LabelRow(label, assignment, annotator, foreign.campaign, "rank")


def _in_order_of_hash(pair: Ranking) -> Ranking:
    first, second = map(_digest, ([text] for text in pair.completions))
    if first <= second:
        return pair
    return dataclasses.replace(
        pair,
        completions=pair.completions[::-1],
        ranks=pair.ranks[::-1],
        policies=pair.policies[::-1],
        ended=pair.ended[::-1],
        probabilities=[],
    )


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
