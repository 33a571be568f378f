"""Rows of tables as rows of rankings.

`--columns` tells which column holds the prompt, the answers, what was said and who said it
(`columns`); rows of other tools become plain ones, a row for each judgement that counts
(`judgements`); what was said becomes ranks (`ranks`). What was asked may stand in a file of its
own, as Potato's does: rows are joined to its items by their id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import factorial
from typing import Any

from data.errors import SourceError, nearest
from data.labels.exchange.tables.columns import LETTERS, SAID, Table
from data.labels.exchange.tables.judgements import WHICH, WHO, Row, is_record, judgements, value_of
from data.labels.exchange.tables.ranks import Answers, ranks_of
from data.sources.read import ReadReport, located_rows
from data.sources.source import Source
from data.sources.values import RowDropped, RowError, as_text, listed

LISTED = "a ranking of Argilla's is a list of names, taken from the best on"
LOST = (
    "Argilla's client drops the ranks of what it reads from a server; fetch the records from the "
    "REST API (api/v1/datasets/ID/records?include=responses&limit=1000), which keeps them, and "
    "import that"
)
_CHANCE = 200
"""So many times less likely than not is it that rankings stand in the order of the columns."""


class TableReader:
    """Reads rows as rankings, and remembers what can't be told from one row."""

    def __init__(self, source: str, table: Table, report: ReadReport) -> None:
        """Read the items, if there are any.

        Args:
            source: where the rows are from, for errors.
            table: what is told of them.
            report: where what is left out is counted.

        Raises:
            SourceError: the items can't be read, or two have one id.
        """
        self.source, self.table, self.report = source, table, report
        self.columns = columns = table.columns
        self.questions = [columns[name] for name in SAID if name in columns]
        self.items = None if table.items is None else _items(table.items, columns.get("id", "id"))
        self._orders: Counter[tuple[int, ...]] = Counter()
        self._met: dict[str, None] = {}

    def rows(self, row: Row) -> Iterator[dict[str, Any]]:
        """Yield what was said in a row as rows of rankings.

        Raises:
            RowError: a column is missing, or what was said names none of the answers.
        """
        try:
            yield from self._rows(row)
        except RowError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RowError(
                "it is no row of a plain table, of Argilla, Label Studio or Potato "
                f"({error!r:.100})"
            ) from error

    def check(self) -> None:
        """Refuse what only all rows together tell, once they are read.

        Raises:
            SourceError: a column is empty or not there; or all rankings stand in the order of the
                columns, as no annotators would put them, since their ranks got lost on the way.
        """
        answers = [self.columns[one] for one in LETTERS if one in self.columns]
        asked = [*answers, *([] if self.report.records else self.questions)]
        unmet = [name for name in asked if name not in self._met]
        if self._met and unmet:
            raise SourceError(
                f"{self.source}: no row holds anything in '{unmet[0]}'; there are "
                f"{listed(self._met)}.{nearest(unmet[0], self._met)}"
            )
        if len(self._orders) != 1:
            return
        ((order, count),) = self._orders.items()
        if list(order) == sorted(order) and factorial(len(order)) ** count >= _CHANCE:
            raise SourceError(
                f"{self.source}: all {count} rankings of '{self.columns['winner']}' stand in the "
                f"order of the columns: {LOST}"
            )

    def _rows(self, row: Row) -> Iterator[dict[str, Any]]:
        dropped = self.report.dropped
        for whole in _unfolded(row, self.columns, self.report.notes):
            for said in judgements(
                whole, self.columns, self.report, unconfirmed=self.table.unconfirmed
            ):
                joined = self._joined(said)
                self._met |= dict.fromkeys(
                    part
                    for name, value in joined.items()
                    if name != WHICH and value is not None
                    for part in (name, name.partition(".")[0])
                )
                answers = Answers(joined, self.columns)
                self._met |= dict.fromkeys(self.columns.get(one, one) for one in answers.letters)
                try:
                    ranks = ranks_of(joined, answers, self.columns)
                except RowDropped as reason:
                    dropped[str(reason)] += 1
                    continue
                self._check_names(whole, said, answers)
                who = said.get(self.columns.get(WHO, WHO))
                which = said.get(WHICH, said.get("instance_id"))
                yield {
                    **({} if which is None else {"id": f"{which}"}),
                    "prompt": self._prompt(joined),
                    "completions": answers.texts,
                    "ranks": ranks,
                    **({} if who in (None, "") else {"annotator": self._named(who)}),
                }

    def _prompt(self, row: Row) -> Any:
        column = self.columns["prompt"]
        prompt = value_of(row, column)
        if not prompt or not isinstance(prompt, (str, list)):
            raise RowError(f"column '{column}' holds nothing that was asked, text or messages")
        return prompt

    def _named(self, who: Any) -> str:
        """Return an annotator's name, of Label Studio's accounts the address."""
        if isinstance(who, Mapping):
            who = who.get("email") or who.get("username") or who.get("id")
        name = as_text(str(who), "annotator")
        return self.table.names.get(name, name)

    def _joined(self, said: Row) -> Row:
        if self.items is None:
            if "instance_id" in said and self.columns["prompt"] not in said:
                raise RowError(
                    "Potato's files hold answers alone; give its data file, which holds what was "
                    "asked, by --items"
                )
            return said
        own = self.columns.get("id", "id")
        column = own if own in said else "instance_id"
        if column not in said:
            raise RowError(f"there is no column '{own}' by which it belongs to an item")
        item = self.items.get(str(said[column]))
        if item is None:
            hint = ""
            if str(said[column]).startswith("bws_tuple_"):
                hint = "; it is a tuple, which BwsTupleGenerator.generate() of potato returns"
            says = f"column '{column}' says {str(said[column])[:40]!r}"
            raise RowError(f"{says}, no item of {self.table.items}{hint}")
        return {**item, **said}

    def _check_names(self, row: Row, said: Row, answers: Answers) -> None:
        """Look at a ranking of Argilla's that is a list of names, without ranks.

        Raises:
            RowError: it was on a server, where it had ranks.
        """
        column = self.columns.get("winner", "")
        value = said.get(column)
        if "responses" not in row and f"{column}.responses" not in row:
            return
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            if row.get("_server_id"):
                raise RowError(f"'{column}' has names without their ranks: {LOST}")
            self.report.notes[LISTED] += 1
            known = [one for one in value if one not in answers.absent]
            self._orders[tuple(answers.place(one, column) for one in known)] += 1


def _items(place: str, column: str) -> dict[str, Row]:
    items: dict[str, Row] = {}
    for _, raw in located_rows(Source(path=place), ReadReport()):
        if raw.value is None:
            raise SourceError(f"--items: {raw.where}: {raw.problem}")
        if column not in raw.value:
            raise SourceError(
                f"--items: {raw.where}: there is no column '{column}'; name that of the ids, as "
                "in --columns ...,id=COLUMN"
            )
        name = str(raw.value[column])
        if name in items:
            raise SourceError(f"--items: {raw.where}: a second item has the id {name[:40]!r}")
        items[name] = raw.value
    return items


def _unfolded(row: Row, columns: Mapping[str, str], notes: Counter[str]) -> Iterator[Row]:
    """Yield the rows that stand in one: a table by columns, records by their id, a page of them."""
    values = list(row.values())
    asked = row.get(columns["prompt"])
    if isinstance(asked, list) and not any(_is_turn(one) for one in asked):
        sizes = {len(value) if isinstance(value, list) else None for value in values}
        if sizes == {len(asked)}:
            for place in range(len(asked)):
                yield {name: value[place] for name, value in row.items()}
            return
    if values and all(isinstance(one, Mapping) and "fields" in one for one in values):
        yield from values
        return
    pages = [value for value in values if _is_page(value, columns["prompt"])]
    if len(pages) == 1 and asked is None:
        total = row.get("total")
        if isinstance(total, int) and total > len(pages[0]):
            notes[f"a page of {len(pages[0]):,} of {total:,} records; fetch the others, too"] += 1
        yield from pages[0]
        return
    yield row


def _is_page(value: Any, prompt: str) -> bool:
    """Tell whether a value is a list of rows, as a REST API has them beside their number."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) for one in value)
        and all(prompt in one or is_record(one) for one in value)
    )


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and ("content" in value or "role" in value)
