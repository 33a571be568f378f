"""Guesses which columns of a table hold what is wanted, where none has a name that formats know.

Names decide first, letter case, spaces and signs aside ("Best Answer" is an answer, " prompt " the
prompt), then what the columns hold. Where two would do equally well nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from data.errors import SourceError
from data.sources.asking import MESSAGE_COLUMNS, QUESTION_COLUMNS, Row
from data.sources.formats import ANSWER_COLUMNS, detect
from data.sources.values import listed

Wanted = Literal["demonstrations", "rankings", "texts", "prompts"]

_ANSWERED = frozenset(("prompt_completion", "instruction", "messages"))
_RANKED = frozenset(("rankings", "preference", "hh"))
FITTING: Mapping[Wanted, frozenset[str]] = {
    "demonstrations": _ANSWERED | _RANKED,
    "rankings": _RANKED,
    "texts": frozenset(("text", "prompt", *_ANSWERED, *_RANKED)),
    "prompts": frozenset(("prompt", *_ANSWERED, *_RANKED)),
}
"""Formats whose rows hold what is wanted."""
NEEDED: Mapping[Wanted, Sequence[Sequence[str]]] = {
    "demonstrations": (("messages",), ("prompt", "completion")),
    "rankings": (("prompt", "completions", "ranks"), ("prompt", "completions", "scores"),
                 ("prompt", "chosen", "rejected")),
    "texts": (("text",),),
    "prompts": (("prompt",),),
}  # fmt: skip
"""Columns that make rows of that, the last way where no other is found by names."""
_NAMES: Mapping[str, Sequence[str]] = {
    "messages": ("dialogue", "dialog", "turns", *MESSAGE_COLUMNS),
    "prompt": ("prompt", "question", "ask", "request", "user", "human",
               "frage", "pregunta", "text", *QUESTION_COLUMNS),
    "completion": ("reply", "assistant", "bot", "target", "gold", "groundtruth", "summary",
                   "antwort", "respuesta", "réponse", *ANSWER_COLUMNS),
    "chosen": ("chosen", "better", "preferred", "accepted", "good", "positive", "best"),
    "rejected": ("rejected", "worse", "dispreferred", "refused", "bad", "negative", "worst"),
    "completions": ("completions", "answers", "responses", "candidates", "outputs", "generations"),
    "ranks": ("ranks", "rank", "ranking", "order"),
    "scores": ("scores", "score", "ratings", "rating", "rewards"),
    "text": ("text", "content", "body", "document", "article", "story", "passage"),
}  # fmt: skip
"""What columns are called, one word each; they are so, too, where their names end or begin so."""
_BESIDE = (
    "id",
    "type",
    "kind",
    "length",
    "count",
    "tokens",
    "url",
    "name",
    "model",
    "date",
    "source",
)
"""Last words of names of columns that tell something of another one."""
_WHAT: Mapping[str, str] = {
    "messages": "the turns",
    "prompt": "what is asked",
    "completion": "the answer",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "completions": "the answers",
    "ranks": "the answers' ranks",
    "scores": "the answers' scores",
    "text": "the text",
}
_TEXTS = ("prompt", "completion", "chosen", "rejected", "text")
"""Those of ours that hold text."""


def guess_columns(
    rows: Sequence[Row], wanted: Wanted, *, place: str, way_out: str
) -> dict[str, str]:
    """Return our names of columns with their names in the table; {} where no mapping is needed.

    Args:
        rows: some of the table's.
        wanted: what it is to hold.
        place: the file, for the error.
        way_out: how to say which columns they are; `{columns}` stands for an example.

    Raises:
        SourceError: no column or several would do.
    """
    if any(_known(row) in FITTING[wanted] for row in rows):
        return {}
    ways = [_by_name(rows, ours) for ours in NEEDED[wanted]]
    # Of ways that are equally near the last one is told of.
    found = max(reversed(ways), key=lambda way: sum(len(names) == 1 for names in way.values()))
    taken = {ours: names[0] for ours, names in found.items() if len(names) == 1}
    missing = [ours for ours in found if ours not in taken]
    if not missing:
        return taken
    spare = [name for name in _columns(rows) if name not in taken.values() and _wordy(rows, name)]
    choices = found[missing[0]] or spare
    if len(missing) == len(choices) == 1 and missing[0] in _TEXTS:
        return taken | {missing[0]: choices[0]}
    asking = [name for name in spare if _asks(rows, name)]
    if missing == ["prompt", "completion"] and len(spare) == 2 and len(asking) == 1:
        (answering,) = set(spare) - set(asking)
        return {"prompt": asking[0], "completion": answering}
    example = ",".join(f"{ours}={taken.get(ours, 'COLUMN')}" for ours in found)
    raise SourceError(
        f"{place}: can't tell which column holds {_WHAT[missing[0]]}, of "
        f"{listed(choices or _columns(rows))}; say so with {way_out.format(columns=example)}"
    )


def _known(row: Row) -> str:
    try:
        return detect(row)
    except SourceError:
        return ""


def _by_name(rows: Sequence[Row], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Return for each of ours the columns that are called so; the more exactly, the better."""
    found: dict[str, list[str]] = {}
    for ours in wanted:
        fitting = (
            [name for name in _columns(rows) if any(fits(name, word) for word in _NAMES[ours])]
            for fits in (_is, _ends_or_begins)
        )
        found[ours] = next(filter(None, fitting), [])
    return found


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _words(name: str) -> list[str]:
    """Return the words of a column's name: `bestAnswer`, "Best Answer" and best_answer have two."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _is(name: str, word: str) -> bool:
    return "".join(_words(name)) == word.replace("_", "")


def _ends_or_begins(name: str, word: str) -> bool:
    words = _words(name)
    return len(words) > 1 and words[-1] not in _BESIDE and word in (words[0], words[-1])


def _wordy(rows: Sequence[Row], name: str) -> bool:
    """Tell whether a column mostly holds text of more than a word."""
    values = [row.get(name) for row in rows]
    return 2 * sum(isinstance(one, str) and " " in one.strip() for one in values) > len(rows)


def _asks(rows: Sequence[Row], name: str) -> bool:
    asked = sum(str(row.get(name, "")).rstrip().endswith(("?", "？", "؟")) for row in rows)
    return 3 * asked > len(rows)
