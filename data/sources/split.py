"""Splits records into training and held-out ones by a hash of what they hold.

Prompts: rows with the same opening (the first turn of the user, or the plain prompt; letter case
and spacing aside) always fall on the same side, so that no held-out question is trained on in
another row; rows that are added later move none. Texts of a corpus: equal ones fall on the same
side, whatever the seed. Rankings: exactly a share of the prompts is held out.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

from data.errors import SourceError
from data.records import Document, Prompt, Ranking, Record, prompt_hash, prompt_of


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


def is_heldout_text(text: str, *, share: float) -> bool:
    """Tell whether a text of a corpus is among the held-out share."""
    return text_value(text) < share


def text_value(text: str) -> float:
    """Return a number in [0, 1) that is spread evenly over texts; those below a share go out."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) / 2.0**32


def of_part(record: Record, part: str | None, *, share: float) -> bool:
    """Tell whether a record is on a side, "train" or "heldout"; on both where `part` is None.

    The side follows from what it asks, of a document from its text, and from nothing else: rows
    that ask the same are on the same side in every file.
    """
    if part is None:
        return True
    if isinstance(record, Document):
        out = is_heldout_text(record.text, share=share)
    else:
        out = is_heldout(prompt_of(record), share=share)
    return out == (part == "heldout")


def split_by_prompt(
    rankings: Sequence[Ranking], *, share: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """Split into training and held-out rankings, all rankings of a prompt on one side.

    Which prompts are held out depends on the seed and the prompts alone, not on their order.

    Args:
        rankings: any rankings; a prompt may occur more than once, with several annotators.
        share: of the prompts to hold out; above 0 at least one is.
        seed: another seed holds out others.

    Raises:
        SourceError: too few prompts to have both sides.
    """
    if share == 0:
        return list(rankings), []
    keys = [prompt_hash(r.prompt) for r in rankings]
    order = sorted(set(keys), key=lambda k: hashlib.sha256(f"{seed} {k}".encode()).digest())
    n_heldout = max(1, round(share * len(order)))
    if n_heldout >= len(order):
        raise SourceError(
            f"{len(order)} prompts with rankings are too few to hold out a share of {share:g}; "
            "give more rankings or a smaller heldout_share"
        )
    held = set(order[:n_heldout])
    training = [r for r, key in zip(rankings, keys, strict=True) if key not in held]
    heldout = [r for r, key in zip(rankings, keys, strict=True) if key in held]
    return training, heldout
