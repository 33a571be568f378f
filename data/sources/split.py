"""Splits records into training and held-out ones by a hash of what they ask.

Rows with the same opening (the first turn of the user, or the plain prompt; letter case and
spacing aside) always fall on the same side, so that no held-out question is trained on in another
row. The side depends on the row and the seed alone: rows that are added later move none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from data.errors import SourceError
from data.records import Prompt, Record, prompt_of

AnyRecord = TypeVar("AnyRecord", bound=Record)


def opening(prompt: Prompt) -> str:
    """Return what a prompt opens with: its first turn of the user, or the plain text."""
    if isinstance(prompt, str):
        text = prompt
    else:
        asked = (turn["content"] for turn in prompt if turn["role"] == "user")
        text = next(asked, prompt[0]["content"] if prompt else "")
    return " ".join(text.lower().split())


def split_value(prompt: Prompt, *, seed: int = 0) -> float:
    """Return a number in [0, 1) that is spread evenly over openings; rows below a share go out."""
    text = f"{seed}\n{opening(prompt)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 2.0**56


def is_heldout(prompt: Prompt, *, share: float, seed: int = 0) -> bool:
    """Tell whether a prompt is among the held-out share."""
    return split_value(prompt, seed=seed) < share


def split_records(
    records: Iterable[AnyRecord], *, heldout: float | int, seed: int = 0
) -> tuple[list[AnyRecord], list[AnyRecord]]:
    """Return training and held-out records, each in the order they came.

    Args:
        records: what to split.
        heldout: below 1 the share of openings; else the number of records, at least: openings
            are taken in the order of their hash, with all their records.
        seed: another seed is another split.

    Raises:
        SourceError: one side would be empty.
    """
    rows = list(records)
    values = [split_value(prompt_of(row), seed=seed) for row in rows]
    if heldout < 1:
        border = float(heldout)
    else:
        ordered = sorted(values)
        border = ordered[int(heldout) - 1] if heldout <= len(ordered) else 1.0
        border = _after(border)
    train = [row for row, value in zip(rows, values, strict=True) if value >= border]
    held = [row for row, value in zip(rows, values, strict=True) if value < border]
    if heldout and not (train and held):
        side = "training" if not train else "held-out"
        raise SourceError(
            f"no {side} rows are left: {len(rows)} rows with {len(set(values))} different openings "
            f"can't give {heldout} held out; change the held-out size or give more rows"
        )
    return train, held


def _after(value: float) -> float:
    """Return a border that takes a value in."""
    return value + 2.0**-56
