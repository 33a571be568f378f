"""What a reader of the report must know before its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.judge.overlap import seen_lines


def notices(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know first: which stages are missing, and what was seen before."""
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
    return [" ".join(sentences) for sentences in (standing, *seen) if sentences]


def seen_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what of an evaluation's prompts and texts was seen in training, as sentences."""
    seen = evaluation.get("seen")
    if not seen or not (seen["prompts"] or seen["texts"] or seen["unread"]):
        return []
    return seen_lines(evaluation)
