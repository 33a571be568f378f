"""A figure with its interval and, where there is none, the reason in words; never NaN."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.intervals import Estimate, clustered_share

FEW = 20
"""Prompts below which a note asks for care."""


@dataclass(frozen=True)
class Figure:
    """What was counted.

    Attributes:
        value: the figure; None where it is not defined, and `note` says why.
        low: lower end of its 95 % interval.
        high: upper end.
        n: how many `of` it rests on.
        of: what `n` counts.
        note: what a reader must know, in words.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    of: str = "prompts"
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    def text(self, *, percent: bool = True) -> str:
        """Return it as one cell of a table, like `81.2% [74.0, 87.1]`."""
        if self.value is None:
            return "-"
        scale, digits, unit = (100, 1, "%") if percent else (1, 3, "")
        cell = f"{scale * self.value:.{digits}f}{unit}"
        if self.low is None or self.high is None:
            return cell
        return f"{cell} [{scale * self.low:.{digits}f}, {scale * self.high:.{digits}f}]"


def missing(note: str) -> Figure:
    """Return the figure that is not there, with the reason."""
    return Figure(None, note=note)


def figure(estimate: Estimate, *, of: str = "prompts", note: str = "") -> Figure:
    """Return an estimate as a figure; says where it rests on little."""
    notes = [note] if note else []
    if estimate.value is not None and estimate.n < FEW:
        one = estimate.n == 1
        notes.append(f"only {estimate.n} {of.removesuffix('s') if one else of}")
    return Figure(*estimate, of=of, note="; ".join(notes))


def share(counts: dict[str, tuple[float, float]], *, nothing: str, at_end: str = "") -> Figure:
    """Return a share whose parts hang together by prompt.

    Args:
        counts: of each prompt, what fulfils and what was counted.
        nothing: the note where nothing was counted.
        at_end: the note where the share is 1.
    """
    parts = np.array([row for row in counts.values() if row[1] > 0], dtype=np.float64)
    if not len(parts):
        return missing(nothing)
    estimate = clustered_share(parts)
    return figure(estimate, note=at_end if estimate.value == 1 else "")
