"""What a user's data hold: how many rows of which kind, what they ask, and how they are read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from data.errors import SourceError
from data.records import (
    Completion,
    Document,
    Prompt,
    Ranking,
    Record,
    as_chat,
    prompt_of,
    to_demonstration,
    to_prompt,
    to_ranking,
    to_text,
)
from data.sources.folders import TEXT_SUFFIXES, find_files, kind_of
from data.sources.guessing import Wanted, guess_columns
from data.sources.read import ReadReport, located_rows, read
from data.sources.split import opening, split_value, text_value
from data.words import counted
from pipeline.contract.settings import SourceSettings
from pipeline.contract.sources import DEMONSTRATIONS, PROMPTS, RANKINGS, TEXTS

SAMPLE = 300
"""Rows of a source, drawn evenly, whose tokens are counted."""
SECONDS = 30.0
"""After which the rows of a source are counted no further."""
GUESSED_FROM = 50
"""First rows of a source that tell its columns."""
FEW_TEXTS = 20
"""Fewer texts are cut at blank lines where that can be, so that some can be held out."""


class Kind(NamedTuple):
    """What an option of the command names.

    Attributes:
        wanted: what its rows hold.
        convert: makes a record into that, or raises `TypeError`.
        noun: one of its rows.
        takes: what it takes, for a sentence.
    """

    wanted: Wanted
    convert: Callable[[Record], object]
    noun: str
    takes: str


KINDS: Mapping[str, Kind] = {
    "sft": Kind("demonstrations", to_demonstration, "demonstration", DEMONSTRATIONS),
    "pairs": Kind("rankings", to_ranking, "pair", RANKINGS),
    "rankings": Kind("rankings", to_ranking, "ranking", RANKINGS),
    "prompts": Kind("prompts", to_prompt, "prompt", PROMPTS),
    "texts": Kind("texts", to_text, "text", TEXTS),
}


@dataclass(frozen=True, eq=False)
class Material:
    """A source that was looked at.

    Attributes:
        kind: the option that named it, one of `KINDS`.
        source: where it is and how it is read.
        rows: its records.
        whole: whether all were counted.
        records: some of them, drawn evenly.
        places: of each thing that is asked (of texts, of each text) its place in the split.
        report: what was read and lost.
    """

    kind: str
    source: SourceSettings
    rows: int
    whole: bool
    records: Sequence[Record]
    places: Mapping[Any, float]
    report: ReadReport = field(repr=False)

    @property
    def place(self) -> str:
        """What it is called."""
        return self.source.source().place

    @property
    def plain(self) -> bool:
        """Whether it holds prompts that are plain text."""
        return any(isinstance(prompt_of(record), str) for record in self.records)

    @property
    def continues(self) -> bool:
        """Whether answers go on from plain prompts as they stand.

        Answers that were written to be put behind their prompts have a space in between.
        """
        known = [joint for record in self.records if (joint := _joint(record)) is not None]
        return 2 * sum(known) > len(known)

    def told(self) -> str:
        """Return a line on what was found."""
        noun = KINDS[self.kind].noun
        more = "" if self.whole else " at least (the rest was not counted)"
        asked = f", {len(self.places):,} different prompts" if self.kind != "texts" else ""
        columns = self.source.columns or {}
        read_as = ", ".join(f"{ours}={theirs}" for ours, theirs in columns.items())
        how = f"; columns {read_as}" if read_as else ""
        how += "; cut at blank lines" if self.source.format == "text_blank_lines" else ""
        chat = "; plain prompts become a user's turns" if self.source.chat else ""
        return f"{self.kind}: {self.place}: {counted(self.rows, noun)}{more}{asked}{how}{chat}"

    def lost(self) -> list[str]:
        """Return lines on what of it is not read."""
        told = [line for line in self.report.lines() if not line.startswith("read ")]
        return [f"{self.kind}: {self.place}: {line}" for line in told[1:]]

    def as_chats(self) -> Material:
        """Return it with its plain prompts as turns of the user."""
        source = self.source.model_copy(update={"chat": True})
        return replace(self, source=source, records=[as_chat(one) for one in self.records])


def look(kind: str, source: SourceSettings) -> Material:
    """Look at a source: guess its columns where they have no names we know, read and count it.

    Raises:
        SourceError: it can't be read, its columns can't be told, or it holds other rows.
    """
    found = _look(kind, _with_columns(kind, source))
    paths = found.source.source().paths
    if kind != "texts" or found.rows >= FEW_TEXTS or source.format != "auto" or not paths:
        return found
    files = [file for path in paths for file in find_files(path, source.hub_split).files]
    if all(kind_of(file) in TEXT_SUFFIXES for file in files):
        cut = _look(kind, source.model_copy(update={"format": "text_blank_lines"}))
        found = cut if cut.rows >= FEW_TEXTS else found
    return found


def _with_columns(kind: str, source: SourceSettings) -> SourceSettings:
    """Return a source with the columns that its first rows tell, if they have to be named."""
    if source.columns or source.world is not None or source.format != "auto":
        return source
    rows = located_rows(source.source(), ReadReport())
    try:
        first = [row.value for _, row in islice(rows, GUESSED_FROM) if row.value is not None]
    finally:
        rows.close()
    if all(list(row) == ["text"] for row in first) and kind != "prompts":
        return source  # nothing, or texts, of which the reading tells what is wrong
    columns = guess_columns(
        first,
        KINDS[kind].wanted,
        place=f"--{kind} {source.source().place}",
        way_out=f"--columns {kind}:{{columns}}",
    )
    return source.model_copy(update={"columns": columns}) if columns else source


def _look(kind: str, source: SourceSettings) -> Material:
    report, drawn, started = ReadReport(), random.Random(0), time.monotonic()
    records: list[Record] = []
    places: dict[Any, float] = {}
    rows, whole = 0, True
    for record in read(source.source(), report=report):
        _require(kind, record, source)
        rows += 1
        _keep(places, record)
        if len(records) < SAMPLE:
            records.append(record)
        elif (place := drawn.randrange(rows)) < SAMPLE:
            records[place] = record
        if time.monotonic() - started > SECONDS:
            whole = False
            break
    return Material(kind, source, rows, whole, records, places, report)


def _require(kind: str, record: Record, source: SourceSettings) -> None:
    try:
        KINDS[kind].convert(record)
    except TypeError as error:
        texts = "; --texts takes texts" if isinstance(record, Document) else ""
        raise SourceError(
            f"--{kind} {source.source().place}: {error}: {KINDS[kind].takes}; name another file, "
            f"or map its columns by --columns {kind}:OURS=THEIRS{texts}"
        ) from None


def _keep(places: dict[Any, float], record: Record) -> None:
    if isinstance(record, Document):
        places[len(places)] = text_value(record.text)
    else:
        places[hash(opening(prompt_of(record)))] = split_value(prompt_of(record))


def _joint(record: Record) -> bool | None:
    """Tell whether an answer goes on from a plain prompt as it stands; None without such."""
    answers: Sequence[str] = ()
    prompt: Prompt = []
    if isinstance(record, Completion):
        prompt, answers = record.prompt, (record.completion,)
    elif isinstance(record, Ranking):
        prompt, answers = record.prompt, record.completions
    if not isinstance(prompt, str) or not answers:
        return None
    open_end = prompt[-1:].isspace() or prompt.endswith(":")
    return open_end or any(answer[:1].isspace() for answer in answers)
