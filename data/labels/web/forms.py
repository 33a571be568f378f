"""What the script sends, and how it becomes a submission.

The page knows answers by the place where they stand; the store knows them by their place in the
task. Only here one becomes the other.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.errors import InvalidLabelError
from data.labels.records import RATINGS, Mode, Submission
from data.labels.web.sessions import refuse_nul
from data.records import dense_ranks
from data.words import counted

_Flags = list[str]


class Sheet(BaseModel):
    """What an annotator has filled in so far; lists go by the place shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: str = Field(default="", max_length=64)
    """Of the submission that the page makes, or made."""
    phase: Literal["rate", "rank"] = "rank"
    """Which step of the page is open."""
    tiers: list[int | None] = Field(max_length=9)
    """1 is best; None is not placed yet."""
    ratings: list[int | None] = Field(max_length=9)
    flags: list[_Flags] = Field(max_length=9)
    choice: int | None = Field(default=None, ge=-3, le=3)
    """Of a pair: below 0 the first is better, by so much."""
    comment: str = Field(default="", max_length=4000)
    seconds: float = Field(default=0.0, ge=0, le=7 * 86400, allow_inf_nan=False)


def read_sheet(body: bytes, *, completions: int) -> Sheet:
    """Return the sheet in the body of a request.

    Raises:
        InvalidLabelError: it is none, or not one for a task of so many completions.
        HTTPException: 400, a text holds NUL.
    """
    try:
        sheet = Sheet.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise InvalidLabelError(f"{where}: {first['msg'].lower()}") from error
    refuse_nul(sheet.key, sheet.comment, *chain.from_iterable(sheet.flags))
    sizes = {len(sheet.tiers), len(sheet.ratings), len(sheet.flags)}
    if sizes != {completions}:
        raise InvalidLabelError(f"this task has {counted(completions, 'answer')}")
    if any(tier is not None and not 1 <= tier <= completions for tier in sheet.tiers):
        raise InvalidLabelError(f"tiers go from 1 to {completions}")
    if any(rating is not None and rating not in RATINGS for rating in sheet.ratings):
        raise InvalidLabelError("ratings go from 1 to 7")
    if any(len(flags) != len(set(flags)) or len(flags) > 32 for flags in sheet.flags):
        raise InvalidLabelError("a flag is set twice")
    return sheet


def to_submission(sheet: Sheet, *, order: list[int], mode: Mode) -> Submission:
    """Return the submission of a sheet that is filled in.

    Args:
        sheet: from the page.
        order: which completion stood at which place.
        mode: of the campaign.

    Raises:
        InvalidLabelError: something is missing.
    """
    if len(sheet.key) < 16:
        raise InvalidLabelError("the submission has no key: reload the page")
    tiers, strength = list(sheet.tiers), None
    if mode == "pairs":
        if sheet.choice is None or len(tiers) != 2:
            raise InvalidLabelError("say first which answer is better, and by how much")
        strength = abs(sheet.choice)
        tiers = [1 + (sheet.choice > 0), 1 + (sheet.choice < 0)]
    placed = [tier for tier in tiers if tier is not None]
    if len(placed) != len(tiers):
        raise InvalidLabelError("place every answer first")
    ratings = [rating for rating in sheet.ratings if rating is not None]
    if mode != "rate_and_rank":
        ratings = []
    elif len(ratings) != len(tiers):
        raise InvalidLabelError("rate every answer first")
    flags = [sorted(flags) for flags in sheet.flags]
    back = [order.index(place) for place in range(len(order))]
    return Submission(
        key=sheet.key,
        ranks=dense_ranks([placed[place] for place in back]),
        ratings=[ratings[place] for place in back] if ratings else [],
        flags=[flags[place] for place in back] if any(flags) else [],
        strength=strength,
        comment=sheet.comment.strip(),
        seconds=sheet.seconds,
    )


def from_submission(submission: Submission, *, order: list[int]) -> dict[str, Any]:
    """Return a label as the page shows it, to be revised."""
    tiers = [submission.ranks[index] for index in order]
    choice = None
    if submission.strength is not None:
        choice = submission.strength if tiers[0] > tiers[-1] else -submission.strength
    return {
        "phase": "rank",
        "tiers": tiers,
        "ratings": [submission.ratings[index] if submission.ratings else None for index in order],
        "flags": [submission.flags[index] if submission.flags else [] for index in order],
        "choice": choice,
        "comment": submission.comment,
        # The time of a label is that of all work on it: a correction counts on.
        "seconds": submission.seconds,
    }
