"""What was measured of a published model, with intervals, as the card's tables have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from data.errors import ArtifactError, UsageError
from data.json_lines import read_json_object
from pipeline.contract.artifacts import Artifact
from pipeline.evaluation.judge.pathologies import pathology_lines
from pipeline.evaluation.judge.summary import judge_lines
from pipeline.evaluation.judge.verdict import called
from pipeline.evaluation.judge.workspace import checkpoint_content
from pipeline.evaluation.report.collect import QUALITY, read_evaluation
from pipeline.evaluation.report.reward_model import quality_rows
from pipeline.evaluation.report.tables import head_rows, overlap_rows, provenance_rows, task_rows
from pipeline.evaluation.report.view import FIGURES, MANNERS, interval, number
from pipeline.publish.subject import Subject

Results = Mapping[str, Any]
_SHOWN = (*(line for line in FIGURES if not line[1].startswith("distinct")),)
_OF_TEXT = (("Perplexity", "perplexity"), ("Bits per byte", "bits_per_byte"))


@dataclass(frozen=True)
class Table:
    """Figures of one judgement.

    Attributes:
        heading: of the section.
        lines: what is to be known of it, before the rows.
        rows: measure, value, 95 % interval, what it is of.
    """

    heading: str
    lines: Sequence[str]
    rows: Sequence[tuple[str, str, str, str]] = field(default_factory=list)


def tables(subject: Subject, evaluations: Sequence[Path]) -> list[Table]:
    """Return what was measured of a model: by its stage, by its run, and by other evaluations.

    Args:
        subject: the model.
        evaluations: folders of `rlhf eval`, which judged it, too.

    Raises:
        UsageError: an evaluation did not judge this very model.
        ArtifactError: one can't be read.
    """
    found = [*_of_stage(subject)]
    # With an adapter merged a model says what it says with it beside.
    content = checkpoint_content(subject.whole)
    for artifact in _evaluations(subject):
        results = read_evaluation(artifact.folder)
        names = _named(results, content)
        found += _of_evaluation(f"In the run's `{artifact.name}`", results, names)
    for folder in evaluations:
        results = read_evaluation(folder)
        names = _named(results, content)
        if not names:
            judged = ", ".join(results["checkpoints"]) or "none"
            raise UsageError(
                f"--evaluation {folder}: none of the checkpoints that it judged ({judged}) has the "
                f"files of {subject.folder}; evaluate this one, or leave it out"
            )
        found += _of_evaluation("In an evaluation of its own", results, names)
    return found


def _evaluations(subject: Subject) -> Iterator[Artifact]:
    """Yield what the evaluations of the model's run left that are done.

    Which checkpoint is this model their contents tell: a stage may have been run anew since.
    """
    if subject.run is None:
        return
    for name, artifact in subject.run.artifacts().items():
        if artifact.kind == "evaluate" and subject.run.verified(name) is not None:
            yield artifact


def _named(results: Results, content: str) -> list[str]:
    """Return what an evaluation calls the checkpoint of some content."""
    known = results.get("provenance") or ()
    return [row["checkpoint"] for row in known if row.get("content") == content]


def _of_stage(subject: Subject) -> Iterator[Table]:
    whole = subject.whole == subject.stage.folder / "model"
    if not whole or not (subject.stage.folder / QUALITY).is_file():
        return
    quality = read_json_object(subject.stage.folder / QUALITY)
    try:
        if "head" in quality:
            (row,) = head_rows({"heads": {subject.stage.name: quality}})
            _, second, floor, _ = (cell["note"] for cell in row["cells"])
            names = ("F1", second.capitalize(), f"F1 of {floor}", "F1 above that")
            cells = zip(names, row["cells"], strict=True)
            rows = [(name, cell["value"], cell["ci95"], row["note"]) for name, cell in cells]
        else:
            rows = [
                (row["label"], row["value"], row["ci95"], f"{row['n']:,} pairs" if row["n"] else "")
                for row in quality_rows(quality)
            ]
    except KeyError as error:
        path = subject.stage.folder / QUALITY
        raise ArtifactError(f"{path} has no {error}; run the stage again") from error
    warning = quality.get("warning")
    yield Table("On rows kept apart", [_sentence(warning)] if warning else [], rows)


def _of_evaluation(heading: str, results: Results, names: Sequence[str]) -> Iterator[Table]:
    for name in names:
        told = {row["name"]: row for row in provenance_rows(results)}[name]
        prompts = (results.get("prompts") or {}).get("n") or 0
        lines = [f"It is called `{name}` there. {prompts:,} prompts, {told['decoding']}."]
        lines += [_sentence(line) for line in judge_lines({"judges": _judges(results)})]
        lines += _seen(results, name)
        mine = [row for row in results.get("pathologies") or () if row["checkpoint"] == name]
        lines += [_sentence(line) for line in pathology_lines(mine)]
        figures = results["checkpoints"].get(name, {})
        rows = [*_means(figures), *_rates(results, name), *_tasks(results, name)]
        yield Table(heading, lines, rows)


def _judges(results: Results) -> dict[str, Any]:
    """Return the judges of which a line is told, without the places where they are."""
    judges = (results.get("judges") or {}).items()
    named = {name: told for name, told in judges if told.get("kind") != "http"}
    return {
        name: {**told, "model": PurePath(told["model"]).name} if told.get("kind") == "llm" else told
        for name, told in named.items()
    }


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _seen(results: Results, name: str) -> list[str]:
    place = list(results["checkpoints"]).index(name) if name in results["checkpoints"] else None
    if place is None:
        return []
    cells = [(row["label"], row["cells"][place]) for row in overlap_rows(results)]
    seen = [f"`{stage}` {cell}" for stage, cell in cells if cell != "–" and cell[:2] != "0 "]
    return [f"Of its prompts stages that made it had seen: {'; '.join(seen)}."] if seen else []


def _means(figures: Results) -> Iterator[tuple[str, str, str, str]]:
    for label, key, kind, note in _SHOWN:
        if figures.get(key) is not None:
            ends = interval(figures.get(f"{key}_ci95"), kind)
            yield label, number(figures[key], kind), ends, note
    shares = figures.get("shares") or {}
    for label, key, note in MANNERS:
        if key in shares:
            share = shares[key]
            yield (
                label,
                number(share["share"], "percent"),
                interval(share.get("ci95"), "percent"),
                note,
            )
    for label, key in _OF_TEXT:
        if figures.get(key) is not None:
            yield label, number(figures[key]), interval(figures.get(f"{key}_ci95")), "held-out text"
    for judge, entry in (figures.get("scores") or {}).items():
        yield f"Score by {judge}", number(entry["mean"]), interval(entry.get("ci95")), ""


def _rates(results: Results, name: str) -> Iterator[tuple[str, str, str, str]]:
    judges = results.get("judges") or {}
    for rate in results.get("win_rates") or ():
        if name not in (rate["a"], rate["b"]) or rate["rate"] is None:
            continue
        value, (low, high), other = rate["rate"], rate["ci95"], rate["b"]
        if rate["b"] == name:
            value, low, high, other = 1 - value, 1 - high, 1 - low, rate["a"]
        by = called(rate["judge"], judges)
        ends = interval([low, high], "percent")
        note = f"{rate['n']:,} prompts, a tie is half a win"
        yield f"Wins against `{other}` by {by}", number(value, "percent"), ends, note


def _tasks(results: Results, name: str) -> Iterator[tuple[str, str, str, str]]:
    mine = [row for row in results.get("tasks") or () if row["checkpoint"] == name]
    for row in task_rows({"checkpoints": {name: {}}, "tasks": mine}):
        (cell,) = row["cells"]
        yield row["label"], cell["value"], cell["ci95"], row["note"]
