"""What a reader of the report must know before its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.judge.overlap import seen_lines
from pipeline.evaluation.judge.pathologies import pathology_lines
from pipeline.evaluation.judge.summary import judge_lines, open_lines
from pipeline.evaluation.report.collect import over_optimisations


def notices(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know first.

    Which stages are missing, what was odd in how checkpoints were asked, what was seen before.
    """
    groups: dict[str, list[str]] = {}
    for name, state in report["not_done"].items():
        outdated = name in report["stages"]
        groups.setdefault("outdated" if outdated else state, []).append(
            f"{name} ({state.partition(': ')[2]})" if outdated else name
        )
    standing = []
    for state, names in groups.items():
        sentence = f"{state}: {', '.join(names)}."
        if state == "outdated":
            sentence += (
                " What they left stands in the table of stages alone, not among the figures."
            )
        standing.append(f"Stages {sentence}")
    seen = [seen_sentences(evaluation) for evaluation in report["evaluations"].values()]
    asked = [_sentence(line) for line in open_lines(report)]
    notes = [
        f"{name}: {note}."
        for name, figures in report["checkpoints"].items()
        for note in figures.get("notes") or ()
    ]
    return [" ".join(sentences) for sentences in (standing, asked, notes, *seen) if sentences]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def seen_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what of an evaluation's prompts and texts was seen in training, as sentences."""
    seen = evaluation.get("seen")
    if not seen or not (seen["prompts"] or seen["texts"] or seen["unread"]):
        return []
    return seen_lines(evaluation)


def warnings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what puts the outcome in doubt: the section that has more of it, and a sentence."""
    found: list[tuple[str, str]] = []
    found += [
        ("trade-off", _sentence(over["sentence"]))
        for over in over_optimisations(report)
        if over.get("turn") is not None and over.get("sentence")
    ]
    found += [
        ("provenance", f"{line[:1].upper()}{line[1:]}.")
        for line in judge_lines(report)
        if line.startswith("warning: ")
    ]
    warning = (report["reward_model"] or {}).get("warning")
    if warning:
        found.append(("reward-model", _sentence(warning)))
    last = [
        row for row in report["pathologies"] if row["checkpoint"] == [*report["checkpoints"]][-1]
    ]
    found += [("pathologies", f"{line}.") for line in pathology_lines(last)]
    for name, stage in report["stages"].items():
        if name not in report["not_done"] and stage["alarms"]:
            first = {alarm["alarm"]: alarm for alarm in reversed(stage["alarms"])}
            told = [
                f"{str(alarm['alarm']).replace('_', ' ')} (update {alarm['update']}: "
                f"{alarm['told']})"
                for alarm in reversed(first.values())
            ]
            found.append(("alarms", f"Alarms of {name}: {'; '.join(told)}."))
    return found
