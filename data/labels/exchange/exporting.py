"""Labels as files: lossless rankings, TRL's preference rows, ties, unpaired rows, a spreadsheet.

| what          | files                         | for                                             |
|---------------|-------------------------------|-------------------------------------------------|
| `rankings`    | rankings.jsonl                | the reward stage; `rlhf label import`           |
| `preferences` | preferences/{train,test}.jsonl| TRL's reward and DPO trainers                   |
| `hh`          | hh/{train,test}.jsonl         | readers of Human:/Assistant: dialogues          |
| `ties`        | ties.jsonl                    | losses that use ties; any reader of rankings    |
| `unpaired`    | unpaired/{train,test}.jsonl   | TRL's KTO trainer                               |
| `csv`         | labels.csv                    | a spreadsheet: one line a label and completion  |

Each file is there whole or not at all.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data.errors import SourceError, UsageError
from data.json_lines import json_line
from data.labels.campaign.label_filter import TRAINING, labels_of
from data.labels.exchange.consolidation import Consolidation, Judged, consolidate
from data.labels.exchange.rankings_file import LABEL, VOTES, completion_id, to_ranking
from data.labels.exchange.training_rows import Margin, preference_rows, tied_pairs, unpaired_rows
from data.labels.records import AnnotatorKind, LabelRow, Purpose, prompt_text
from data.records import Prompt, Ranking, to_json
from data.sources.shared import to_transcript
from data.sources.split import is_heldout
from data.storage import storage_errors, write_atomically
from data.words import counted

What = Literal["rankings", "preferences", "hh", "ties", "unpaired", "csv"]

CSV_COLUMNS = (
    "label_id",
    "revision",
    "created_at",
    "annotator",
    "campaign",
    "purpose",
    "task",
    "prompt",
    "completion_id",
    "completion",
    "policy",
    "place_shown",
    "rank",
    "rating",
    "flags",
    "strength",
    "comment",
    "seconds",
)
MOST_HELDOUT = 0.9
"""Largest share of prompts that may be kept from training."""
_FORMULA = tuple("=+-@\t\r\n|＝＋－＠")
"""What a spreadsheet may take for the start of a formula."""
_BLANK = re.compile(
    r"^(?:[^\S\t\r\n]|[\x00-\x08\x0e-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff])+"
)
"""What shows nothing, and a spreadsheet may pass over before it."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        files: rows of each file, by its path below the folder.
        left_out: what the format has no place for, with how many.
    """

    files: dict[str, int]
    left_out: dict[str, int]

    def lines(self) -> list[str]:
        """Return it as lines for the console."""
        lines = [f"{name}: {counted(count, 'row')}" for name, count in self.files.items()]
        return lines + [f"left out {count:,}: {why}" for why, count in self.left_out.items()]


@dataclass(frozen=True)
class ExportSettings:
    """What of some labels is written, and how; the command's and the admin page's are the same.

    Attributes:
        what: which files, see the module.
        consolidation: what becomes of several labels of a task; see that module.
        blind: leave out all that may tell who wrote an answer.
        implicit: preference rows hold the prompt within both dialogues.
        margin: of preference rows; see `data.labels.exchange.training_rows`.
        heldout: share of prompts in test.jsonl; all rows of a prompt are on one side.
        seed: of that split.
        purposes: which labels; None takes gold, qualification and repeats too.
        kinds: whose labels; None takes all.
        revisions: the last of each label, or all, which are to be kept and not to be trained on.
    """

    what: What
    consolidation: Consolidation = "per_annotator"
    blind: bool = False
    implicit: bool = False
    margin: Margin = "none"
    heldout: float = 0.0
    seed: int = 0
    purposes: Collection[Purpose] | None = TRAINING
    kinds: Collection[AnnotatorKind] | None = None
    revisions: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        """Refuse what can't be written.

        Raises:
            UsageError: names the setting, its value and those there are.
        """
        choices = {"what": What, "consolidation": Consolidation, "margin": Margin}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in get_args(known):
                raise UsageError(
                    f"export: {name} '{value}' is none of {', '.join(get_args(known))}"
                )
        keeps_revisions = self.what in ("rankings", "csv") and self.consolidation == "per_annotator"
        if self.revisions == "all" and not keeps_revisions:
            raise UsageError(
                "export: revisions 'all' is for rankings and csv with consolidation "
                "'per_annotator'; elsewhere an earlier revision would count as another label"
            )
        if not 0 <= self.heldout <= MOST_HELDOUT:
            raise UsageError(
                f"export: heldout {self.heldout:g} is no share from 0 to {MOST_HELDOUT}"
            )


def export_labels(rows: Iterable[LabelRow], settings: ExportSettings, *, folder: Path) -> Exported:
    """Write labels into a folder.

    Args:
        rows: labels, of any revision.
        settings: what, and how.
        folder: where to; it is made.

    Raises:
        SourceError: there are no labels to write, or a margin was asked that they don't hold.
        StorageError: the folder can't be written.
    """
    parts, left_out = export_parts(rows, settings)
    counts = {}
    for name, lines in parts.items():
        path = folder / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        counts[name] = write_atomically(path, lines)
    if settings.what == "csv":
        counts = {name: count - 1 for name, count in counts.items()}
    return Exported(counts, dict(left_out))


def export_parts(
    rows: Iterable[LabelRow], settings: ExportSettings
) -> tuple[dict[str, list[str]], Counter[str]]:
    """Return an export as lines by file name, and what was left out; see `export_labels`."""
    what, blind = settings.what, settings.blind
    labels = labels_of(
        rows, purposes=settings.purposes, kinds=settings.kinds, revisions=settings.revisions
    )
    if not labels:
        purposes = settings.purposes
        asked = "" if purposes is None else f" given for {', '.join(sorted(purposes))}"
        raise SourceError(f"nothing to export: there are no labels{asked}")
    left_out: Counter[str] = Counter()
    if what == "csv":
        return {"labels.csv": list(_csv_lines(labels, blind=blind))}, left_out
    if what == "rankings":
        rankings = rankings_of(labels, consolidation=settings.consolidation, blind=blind)
        return {"rankings.jsonl": [_line(to_json(one)) for one in rankings]}, left_out
    judged = consolidate(labels, how=settings.consolidation)
    if what == "ties":
        return {"ties.jsonl": [_line(to_json(one)) for one in tied_pairs(judged)]}, left_out
    return _split_rows(judged, settings, left_out), left_out


def rankings_of(
    labels: Iterable[LabelRow], *, consolidation: Consolidation, blind: bool = False
) -> list[Ranking]:
    """Return labels as rankings to train on or to keep; see `ExportSettings`."""
    if consolidation == "per_annotator":
        return [to_ranking(row, blind=blind) for row in labels]
    rankings = [judged.ranking for judged in consolidate(labels, how=consolidation)]
    if not blind:
        return rankings
    return [
        dataclasses.replace(one, policies=[], id="", meta={VOTES: one.meta[VOTES]})
        for one in rankings
    ]


def _split_rows(
    judged: list[Judged], settings: ExportSettings, left_out: Counter[str]
) -> dict[str, list[str]]:
    if settings.what in ("preferences", "hh"):
        rows = preference_rows(
            judged,
            implicit=settings.implicit or settings.what == "hh",
            margin=settings.margin,
            soft=settings.consolidation == "soft",
            left_out=left_out,
        )
    else:
        rows = unpaired_rows(judged, left_out=left_out)
    if settings.what == "hh":
        rows = _transcripts(rows, left_out)
    parts: dict[str, list[str]] = {f"{settings.what}/train.jsonl": []}
    if settings.heldout > 0:
        parts[f"{settings.what}/test.jsonl"] = []
    for prompt, row in rows:
        held = is_heldout(prompt, share=settings.heldout, seed=settings.seed)
        parts[f"{settings.what}/{'test' if held else 'train'}.jsonl"].append(_line(row))
    return parts


def _transcripts(
    rows: Iterable[tuple[Prompt, dict[str, Any]]], left_out: Counter[str]
) -> Iterator[tuple[Prompt, dict[str, Any]]]:
    """Yield preference rows with their dialogues as Anthropic's HH data have them."""
    for prompt, row in rows:
        pair = {side: to_transcript(row[side]) for side in ("chosen", "rejected")}
        if None in pair.values():
            left_out["pairs that no Human:/Assistant: dialogue can hold"] += 1
        else:
            yield prompt, row | pair


def _line(row: Mapping[str, Any]) -> str:
    try:
        return json_line(row, allow_nan=False)
    except ValueError as error:
        raise SourceError(f"a label holds a number that JSON can't: {error}") from error


def _csv_lines(labels: Iterable[LabelRow], *, blind: bool) -> Iterator[str]:
    yield _csv_line(CSV_COLUMNS)
    for row in labels:
        yield "".join(_csv_line(cells) for cells in _csv_rows(row, blind=blind))


def _csv_rows(row: LabelRow, *, blind: bool) -> Iterator[list[Any]]:
    new, submission = row.assignment.task.new, row.label.submission
    facts = to_ranking(row, blind=blind).meta[LABEL]
    for place, text in enumerate(new.completions):
        shown = row.assignment.order.index(place) + 1 if place in row.assignment.order else ""
        yield [
            row.label.id,
            row.label.revision,
            row.label.created_at.isoformat(),
            row.annotator.name,
            facts["campaign"],
            row.assignment.purpose,
            facts["task"]["key"],
            prompt_text(new.prompt),
            completion_id(new.prompt, text),
            text,
            new.policies[place] if new.policies and not blind else "",
            shown,
            submission.ranks[place],
            submission.ratings[place] if submission.ratings else "",
            " ".join(submission.flags[place]) if submission.flags else "",
            "" if submission.strength is None else submission.strength,
            submission.comment,
            submission.seconds,
        ]


def _csv_line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerow([neutral(cell) for cell in cells])
    return text.getvalue()


def neutral(cell: Any) -> Any:
    """Return a cell that no spreadsheet runs as a formula; numbers stay numbers.

    Text that begins, after blanks, with a sign that starts a formula gets an apostrophe before it
    (OWASP, CSV injection); so does text that begins with one, so that nothing is ambiguous.
    """
    if not isinstance(cell, str):
        return cell
    text = "".join(sign if not 0xD800 <= ord(sign) <= 0xDFFF else "\ufffd" for sign in cell)
    text = text.replace("\0", "\ufffd")
    start = _BLANK.sub("", text, count=1)
    return f"'{text}" if start.startswith((*_FORMULA, "'")) else text
