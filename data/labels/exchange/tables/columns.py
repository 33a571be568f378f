"""Which column of a table holds what: `prompt=q,a=left,b=right,winner=w,annotator=who`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from data.errors import UsageError, nearest

LETTERS = "abcdefghi"
ANSWERS, BEST, WORST, LIKERT, MIDDLE = "answers", "best", "worst", "likert", "middle"
BUCKETS = "buckets"
RATINGS = {f"rating_{letter}": letter for letter in LETTERS}
RANKS = {f"rank_{letter}": letter for letter in LETTERS}
COLUMNS = {
    "prompt": "what was asked",
    **{letter: "an answer" for letter in LETTERS},
    ANSWERS: "a list of answers, in place of a, b ...",
    "winner": "the better answer, or the answers from the best to the worst",
    BEST: "the best of several answers",
    WORST: "the worst of them",
    LIKERT: "a number on a scale from `a` to `b`; below `middle` is for `a`",
    MIDDLE: "the number on that scale that is for neither, no column",
    **{name: f"a rating of `{letter}`, higher is better" for name, letter in RATINGS.items()},
    **{name: f"the rank of `{letter}`, 1 is best" for name, letter in RANKS.items()},
    BUCKETS: "names of Label Studio's buckets, from the best on: good>bad, no column",
    "annotator": "who said so",
    "id": "of a row, which joins it to one of --items",
}
"""What is told of a table, mostly by the name of a column."""
NO_COLUMNS = (MIDDLE, BUCKETS)
SAID = ("winner", BEST, WORST, LIKERT, *RATINGS, *RANKS)
"""Columns that hold what was said of the answers."""
_WAYS = "winner, best (and worst), likert and middle, rating_a ..., or rank_a ..."


@dataclass(frozen=True)
class Table:
    """What is told of a table.

    Attributes:
        columns: theirs, by our names, as `parse_columns` gives them.
        items: a file, folder or glob of what its rows were said of, joined by an id.
        unconfirmed: take responses of Argilla, too, that a file does not tell from drafts.
        names: of annotators, by what the table calls them.
    """

    columns: Mapping[str, str]
    items: str | None = None
    unconfirmed: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


def parse_users(text: str) -> dict[str, str]:
    """Return another tool's users by our annotators' names, of `Ada=USER,Bo=USER`.

    Raises:
        UsageError: it is no such list, or names somebody twice.
    """
    users: dict[str, str] = {}
    for part in _parts(text):
        name, equals, user = (piece.strip() for piece in part.rpartition("="))
        if not name or not equals or not user:
            raise UsageError(f"--users: '{part.strip()}' is no NAME=USER, as in Ada=USER,Bo=USER")
        if name in users or user in users.values():
            raise UsageError(f"--users: '{part.strip()}' names somebody a second time")
        users[name] = user
    return users


def parse_columns(text: str) -> dict[str, str]:
    """Return the names of a table's columns by ours, of `prompt=q,a=left,b=right,winner=w`.

    Raises:
        UsageError: a name is none of `COLUMNS`, given twice or missing, or two ways are mixed.
    """
    found: dict[str, str] = {}
    for part in _parts(text):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or not theirs or ours not in COLUMNS or ours in found:
            raise UsageError(
                f"--columns: '{part.strip()}' is no NAME=COLUMN, once for each of prompt, a, b, "
                f"... or answers, winner, annotator.{nearest(ours, COLUMNS)}"
            )
        found[ours] = theirs
    answers = [] if ANSWERS in found else ["a", "b"]
    if missing := [name for name in ("prompt", *answers) if name not in found]:
        raise UsageError(f"--columns: {', '.join(missing)} is missing, as in {missing[0]}=COLUMN")
    _require_one_way(found)
    return found


def _parts(text: str) -> list[str]:
    """Return what stands between commas; one within quotes holds commas of its own."""
    return next(csv.reader([text], skipinitialspace=True), [""])


def _require_one_way(found: Mapping[str, str]) -> None:
    """Refuse columns that do not tell, in one way, what was said."""
    letters = [letter for letter in LETTERS if letter in found]
    if ANSWERS in found and letters:
        raise UsageError(f"--columns: {letters[0]} does not go with answers; take one of them")
    ways = [
        [name for name in names if name in found]
        for names in (("winner",), (BEST, WORST), (LIKERT,), RATINGS, RANKS)
    ]
    given = [way for way in ways if way]
    if not given:
        raise UsageError(f"--columns: winner is missing; what was said stands in {_WAYS}")
    if len(given) > 1:
        raise UsageError(f"--columns: {given[0][0]} does not go with {given[1][0]}; take {_WAYS}")
    if given == [[WORST]]:
        raise UsageError("--columns: best is missing, as in best=COLUMN")
    for names in (RATINGS, RANKS):
        marked = [letter for name, letter in names.items() if name in found]
        needed = letters or list(LETTERS[: max(2, len(marked))])
        if marked and marked != needed:
            stem = next(iter(names))[:-1]
            raise UsageError(
                f"--columns: {', '.join(stem + one for one in needed)} are needed, one for each of "
                "the answers"
            )
    if (LIKERT in found) != (MIDDLE in found):
        raise UsageError(
            "--columns: likert needs middle, the number that is for neither answer, as in "
            "likert=COLUMN,middle=4 for a scale from 1 to 7"
        )
    try:
        usable = math.isfinite(float(found.get(MIDDLE, "0")))
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"--columns: middle={found[MIDDLE]} is no number, as in middle=4")
