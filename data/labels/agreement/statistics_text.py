"""The report on labels as text, and as lines for a page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from data.labels.agreement.annotator_behaviour import Seconds
from data.labels.agreement.ceiling import Ceiling
from data.labels.agreement.figures import Figure
from data.labels.agreement.statistics import FIGURES, PLAIN, Group, LabelStatistics
from data.labels.records import FLAGS, SKIP_REASONS
from data.words import counted


class Line(NamedTuple):
    """A figure for a page: its title, its value, what it rests on, what it says, a note."""

    title: str
    value: str
    rests_on: str
    says: str
    note: str


COLUMNS = ("agreement_no_ties", "tau", "gold_accuracy", "self_consistency", "first_shown_wins")
"""The figures of each annotator that the table shows."""
_HEADS = ("annotator", "kind", "labels", "agreement", "tau-b", "gold", "self", "first", "median s")


def lines(statistics: LabelStatistics) -> list[Line]:
    """Return a campaign's figures in reading order."""
    return [*_group_lines(statistics.whole), _ceiling_line(statistics.ceiling)]


def _group_lines(group: Group) -> list[Line]:
    figures = []
    for name, (title, says) in FIGURES.items():
        one = group.figures.get(name)
        if one is not None:
            rests_on = _rests_on(one) if one.n else ""
            value = one.text(percent=name not in PLAIN)
            figures.append(Line(title, value, rests_on, says, one.note))
    return [*figures, _time_line(group.seconds)]


def _time_line(time: Seconds) -> Line:
    value = "-" if time.median is None else f"{time.median:.0f} s (MAD {time.mad:.0f} s)"
    odd = f"{time.fast} far too fast, {time.slow} far too slow" if time.fast or time.slow else ""
    note = "; ".join(part for part in (odd, time.note) if part)
    return Line(
        "Time a task", value, counted(time.n, "label"), "median, while the page was seen", note
    )


def _ceiling_line(ceiling: Ceiling) -> Line:
    value = "-"
    if ceiling.low is not None and ceiling.high is not None:
        value = f"{100 * ceiling.low:.1f}% to {100 * ceiling.high:.1f}%"
    notes = [ceiling.note] if ceiling.note else []
    if ceiling.low_end is not None and ceiling.high_end is not None:
        ends = f"{100 * ceiling.low_end:.1f}% to {100 * ceiling.high_end:.1f}%"
        notes.append(f"{ends} at the ends of the agreement's interval")
    says = "best accuracy a reward model can reach on one annotator's labels"
    return Line("Accuracy ceiling", value, "", says, "; ".join(notes))


def to_text(statistics: LabelStatistics) -> str:
    """Return the report as plain text, at most 100 columns wide but for long names and notes."""
    everybody = statistics.whole
    head = f"{statistics.campaign or 'labels'}: {summary(statistics)}"
    rows = [(line.title, line.value, line.rests_on, line.note) for line in lines(statistics)]
    parts = [head, "", _table(rows)]
    for title, counts, names in (
        ("skipped because", everybody.skip_reasons, SKIP_REASONS),
        ("flags", everybody.flags, FLAGS),
    ):
        if counts:
            given = ", ".join(f"{names.get(key, key)} {count:,}" for key, count in counts.items())
            parts.append(f"{title}: {given}")
    if statistics.annotators:
        parts += ["", _table([_HEADS, *_annotator_rows(statistics)])]
    return "\n".join(parts) + "\n"


def summary(statistics: LabelStatistics) -> str:
    """Return how many labels there are, of how many tasks and by how many annotators."""
    everybody, n_tasks = statistics.whole, statistics.n_tasks
    if not everybody.labels:
        of = "" if n_tasks is None else f" of its {counted(n_tasks, 'task')}"
        return f"no labels{of}" + (
            f" by {' or '.join(statistics.kinds)}" if statistics.kinds else ""
        )
    line = (
        f"{counted(everybody.labels, 'label')} of {counted(everybody.tasks, 'task')} by "
        f"{counted(len(statistics.annotators), 'annotator')}; "
        f"{counted(statistics.overlapping, 'task')} labelled by several"
    )
    if n_tasks is not None:
        line += f"; {counted(n_tasks, 'task')} in all"
    if statistics.adjudicated:
        line += f"; {statistics.adjudicated:,} adjudicated, which no figure here counts"
    return line


def _rests_on(one: Figure) -> str:
    noun, *rest = one.of.split(" ") if one.of.startswith("tasks ") else [one.of]
    return " ".join([counted(one.n, noun.removesuffix("s")), *rest])


def _annotator_rows(statistics: LabelStatistics) -> Iterable[tuple[str, ...]]:
    for one in statistics.annotators:
        time = one.group.seconds
        cells = [
            one.group.figures[name].text(percent=name not in PLAIN).partition(" ")[0]
            for name in COLUMNS
        ]
        usual = "-" if time.median is None else f"{time.median:.0f}"
        yield (_plain(one.name), one.kind, f"{one.group.labels:,}", *cells, usual)


def _plain(name: str) -> str:
    """Return a name that can't move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    held = [tuple(row) for row in rows]
    widths = [max(len(row[column]) for row in held) for column in range(len(held[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in held
    )
