"""Splits records into training and held-out ones by a hash of what they ask.

Rows with the same opening (the first turn of the user, or the plain prompt; letter case and
spacing aside) always fall on the same side, so that no held-out question is trained on in another
row. The side depends on the row and the seed alone: rows that are added later move none.
"""

from __future__ import annotations

import hashlib

from data.records import Prompt


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
