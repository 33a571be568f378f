"""What was said of some answers, in any of the ways that tables have, as ranks: 1 is best.

- One answer is better: 1, 2. Of more than two, one is the best: 1, 2, 2, ..., since no order is
  known among the rest.
- The best and the worst of several (best-worst scaling): 1, 2, 2, 3. That is a partial order; what
  stands between is not compared.
- A tie, and whatever says that neither is better: 1, 1.
- A number on a scale between two: below the middle the first is better, above it the second; on it
  they tie.
- A rating of each, or a rank: equal ones tie.
- Names in order, the best first; `B > A = C`; names with ranks, of which equal ones tie.

Tied pairs teach a reward model nothing unless its recipe asks for ties.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.labels.exchange.tables.columns import (
    ANSWERS,
    BEST,
    BUCKETS,
    LETTERS,
    LIKERT,
    MIDDLE,
    RANKS,
    RATINGS,
    WORST,
)
from data.labels.exchange.tables.judgements import Row, value_of
from data.records import dense_ranks
from data.sources.values import JsonError, RowDropped, RowError, as_number, json_value

NOTHING = "nothing was said of the answers"
HALF = "not all was said of the answers that was asked"
"""As of an annotator who is not done: the best and not the worst, a rating of some."""
_WORD = re.compile(r"[^\W\d_]+|\d+")
_TIED = frozenset((
    "tie", "ties", "tied", "draw", "same", "equal", "equally", "both", "bothbad", "neither",
    "identical", "indifferent",
))  # fmt: skip
_TIES = re.compile(
    r"=+|(?:there is )?no (?:clear )?(?:preference|difference|winner)|undecided"
    r"|(?:hard to|can.?t|cannot) (?:tell|say|decide)"
)
_SILENT = frozenset(("n/a", "na", "nan", "none", "null", "skip", "skipped", "unsure"))
_FILL = frozenset((
    "the", "i", "it", "is", "was", "one", "an", "my", "answer", "response", "option", "completion",
    "candidate", "model", "output", "assistant", "choice", "reply", "item", "text", "system",
    "version", "summary", "generation", "message", "winner", "side", "chatbot", "bot", "agent",
    "better", "best", "preferred", "prefer", "prefers", "wins", "win", "won", "much", "slightly",
    "significantly", "clearly", "far", "bit", "somewhat", "strongly", "marginally",
))  # fmt: skip
"""Words around the name of an answer, as in `I prefer response B` or `model_b wins`."""
_AGAINST = frozenset((
    "worse", "worst", "not", "never", "less", "loses", "lost", "lose", "rejected", "reject",
    "except",
))  # fmt: skip
"""Words after which a name is no longer that of the better one."""
_PLACES = {
    **{"left": "1", "right": "2", "first": "1", "second": "2", "third": "3", "fourth": "4"},
    **{"1st": "1", "2nd": "2", "3rd": "3", "4th": "4"},
}
_WHOLE = re.compile(r"(\d+)\.0")
_COMPARED = re.compile(r"(>+|<+|=+)")


class _Chosen(list[Any]):
    """The names of several answers that are equally good, as of Label Studio's Choices."""


class Answers:
    """The answers in a row, and what each may be called."""

    def __init__(self, row: Row, columns: Mapping[str, str]) -> None:
        """Find them.

        Raises:
            RowError: a column is missing, or holds no list of answers.
        """
        if ANSWERS in columns:
            items = _parsed(value_of(row, columns[ANSWERS]))
            if not isinstance(items, Sequence) or isinstance(items, str):
                raise RowError(f"column '{columns[ANSWERS]}' holds no list of answers")
            self.texts = [_text_of(one) for one in items]
            own = {name: n for n, one in enumerate(items) for name in _names_of(one)}
            self.letters = list(LETTERS[: len(items)])
        else:
            held = {one: value_of(row, columns[one]) for one in LETTERS if one in columns}
            # Where some prompts have more answers than others, the last columns are empty.
            self.letters = [
                one for one, text in held.items() if one in "ab" or text not in (None, "")
            ]
            self.texts = [held[letter] for letter in self.letters]
            own = {columns[letter]: n for n, letter in enumerate(self.letters)}
        for name, text in zip(self.letters, self.texts, strict=False):
            if not isinstance(text, (str, list)):
                place = columns.get(name, columns.get(ANSWERS))
                raise RowError(f"column '{place}' holds no text or messages for answer {name}")
        self.absent = {columns[one] for one in LETTERS if one in columns} - set(own)
        self._own = {name.strip().lower(): place for name, place in own.items()}
        self._letters = {letter: place for place, letter in enumerate(self.letters)}
        self._numbers = {str(LETTERS.index(one) + 1): n for one, n in self._letters.items()}
        self._texts = {text: n for n, text in enumerate(self.texts) if isinstance(text, str)}

    def place(self, name: Any, column: str, *, shown: bool = False) -> int:
        """Return which answer a name means; `shown`: by its side on a page, not by a column's name.

        Raises:
            RowError: it means none; says which names do.
        """
        text = _WHOLE.sub(r"\1", str(name).strip().lower())
        if not shown and text in self._own:
            return self._own[text]
        if str(name) in self._texts and text not in self._letters:
            return self._texts[str(name)]
        if len(places := self.named_in(text)) == 1:
            return places.pop()
        names = dict.fromkeys([*self._own, *self._letters, *self._numbers])
        hint = ""
        if text == "0":
            hint = " (numbers count from 1; write a and b for 0 and 1)"
        raise RowError(
            f"column '{column}' says {text[:40]!r}; it is one of {', '.join(names)}, tie{hint}"
        )

    def named_in(self, text: str) -> set[int]:
        """Return the answers that a text names, none where it says something else of them."""
        words = _WORD.findall(text)
        if text.startswith(("-", "+")) or not _AGAINST.isdisjoint(words):
            return set()
        if "than" in words and "better" in words[: words.index("than")]:
            words = words[: words.index("than")]
        found = set()
        for word in words:
            place = self._place_of(word)
            if place is not None:
                found.add(place)
            elif word not in _FILL:
                return set()
        return found

    def any_of(self, words: Sequence[str]) -> bool:
        """Tell whether one of the words is the name of an answer."""
        return any(self._place_of(word) is not None for word in words)

    def _place_of(self, word: str) -> int | None:
        word = _PLACES.get(word, word)
        return self._letters.get(word, self._numbers.get(word))


def ranks_of(row: Row, answers: Answers, columns: Mapping[str, str]) -> list[int]:
    """Return the ranks of the answers.

    Raises:
        RowDropped: nothing, or half of it, was said of them.
        RowError: what was said makes no ranks of them.
    """
    size = len(answers.texts)
    if BEST in columns:
        return _best_worst(row, answers, columns)
    if LIKERT in columns:
        column = columns[LIKERT]
        number = _said(row, column)
        if number is None:
            raise RowDropped(NOTHING)
        if size != 2:
            raise RowError(f"column '{column}' is a scale between two answers, not {size}")
        apart = as_number(number, column) - float(columns[MIDDLE])
        return [1, 1] if apart == 0 else [1, 2] if apart < 0 else [2, 1]
    for names, sign in ((RATINGS, -1), (RANKS, 1)):
        if next(iter(names)) in columns:
            return _marked(row, _columns_of(names, answers, columns), sign)
    return _winner(row, answers, columns)


def _columns_of(
    names: Mapping[str, str], answers: Answers, columns: Mapping[str, str]
) -> list[str]:
    """Return the columns that hold a number for each answer."""
    ours = [name for name, letter in names.items() if letter in answers.letters]
    if missing := [name for name in ours if name not in columns]:
        raise RowError(f"{len(ours)} answers, and --columns has no {missing[0]}")
    return [columns[name] for name in ours]


def _marked(row: Row, columns: list[str], sign: int) -> list[int]:
    """Return the ranks by a number for each answer, of which the smallest times `sign` is best."""
    marks = [_said(row, column) for column in columns]
    if None in marks:
        raise RowDropped(HALF if any(mark is not None for mark in marks) else NOTHING)
    numbers = [as_number(mark, column) for mark, column in zip(marks, columns, strict=True)]
    return dense_ranks([sign * number for number in numbers])


def _best_worst(row: Row, answers: Answers, columns: Mapping[str, str]) -> list[int]:
    size = len(answers.texts)
    said = {name: _said(row, columns[name]) for name in (BEST, WORST) if name in columns}
    if None in said.values():
        raise RowDropped(HALF if any(one is not None for one in said.values()) else NOTHING)
    ranks = [2] * size
    places = {name: answers.place(value, columns[name]) for name, value in said.items()}
    if len(set(places.values())) < len(places):
        raise RowError(f"columns '{columns[BEST]}' and '{columns[WORST]}' name the same answer")
    ranks[places[BEST]] = 1
    if WORST in places:
        ranks[places[WORST]] = 3
    return dense_ranks(ranks)


def _winner(row: Row, answers: Answers, columns: Mapping[str, str]) -> list[int]:
    column = columns["winner"]
    said = _said(row, column, columns.get(BUCKETS, ""))
    if said is None or said == []:
        raise RowDropped(NOTHING)
    if isinstance(said, Mapping) and set(said) == {"selected"}:  # Label Studio's Pairwise
        return _one_of(said["selected"], answers, column, shown=True)
    if isinstance(said, Mapping):
        said = [{"value": name, "rank": rank} for name, rank in said.items()]
    if isinstance(said, _Chosen):
        chosen = {answers.place(name, column) for name in said}
        return dense_ranks([place not in chosen for place in range(len(answers.texts))])
    if isinstance(said, list):
        return _ordered(said, answers, column)
    parts = [part.strip() for part in _COMPARED.split(str(said))]
    if len(parts) > 1 and all(parts) and str(said) not in answers.texts:
        return _compared(parts, answers, column)
    return _one_of(said, answers, column)


def _one_of(said: Any, answers: Answers, column: str, *, shown: bool = False) -> list[int]:
    size, text = len(answers.texts), str(said).strip().lower()
    try:
        first = answers.place(said, column, shown=shown)
    except RowError:
        words = _WORD.findall(text)
        if _TIES.match(text) or not (_TIED.isdisjoint(words) or answers.any_of(words)):
            return [1] * size
        if text in _SILENT:
            raise RowDropped(NOTHING) from None
        raise
    return [1 if place == first else 2 for place in range(size)]


def _compared(parts: list[str], answers: Answers, column: str) -> list[int]:
    """Return the ranks of `B > A = C`, of names and signs in turn."""
    names, signs = parts[::2], parts[1::2]
    ways = {sign[0] for sign in signs} - {"="}
    if len(ways) > 1:
        raise RowError(f"column '{column}' says {' '.join(parts)[:40]!r}, which runs both ways")
    step = -1 if ways == {"<"} else 1
    ranks, rank = {answers.place(names[0], column): 0}, 0
    for sign, name in zip(signs, names[1:], strict=True):
        rank += 0 if sign[0] == "=" else step
        ranks[answers.place(name, column)] = rank
    return _complete(ranks, len(names), answers, column)


def _ordered(said: list[Any], answers: Answers, column: str) -> list[int]:
    """Return the ranks of names in order, of groups that tie in order, or of names with ranks."""
    ranks: dict[int, Any] = {}
    count = 0
    with_ranks = [isinstance(one, Mapping) and "rank" in one for one in said]
    if any(with_ranks) and not all(with_ranks):
        raise RowError(f"column '{column}' ranks {sum(with_ranks)} of {len(answers.texts)} answers")
    for rank, one in enumerate(said, start=1):
        tied = one if isinstance(one, list) else [one]
        for name in tied:
            if with_ranks[0]:
                name, rank = name["value"], name["rank"]
            if str(name) in answers.absent:
                continue
            ranks[answers.place(name, column)] = rank
            count += 1
    return _complete(ranks, count, answers, column)


def _complete(ranks: Mapping[int, Any], count: int, answers: Answers, column: str) -> list[int]:
    size = len(answers.texts)
    if count != size or len(ranks) != size or None in ranks.values():
        known = sum(rank is not None for rank in ranks.values())
        raise RowError(f"column '{column}' ranks {known} of {size} answers")
    return dense_ranks([as_number(ranks[place], column) for place in range(size)])


def _said(row: Row, column: str, buckets: str = "") -> Any:
    """Return what a column says, None for nothing, without what Label Studio puts around it."""
    value = _parsed(value_of(row, column))
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0] if "value" not in value[0] else value
    if isinstance(value, Mapping):
        if "ranker" in value:
            return _order_of(value["ranker"], column, buckets)
        for name in ("choices", "rating", "number"):
            value = value[name] if isinstance(value, Mapping) and name in value else value
            if name == "choices" and isinstance(value, list):
                value = value[0] if len(value) == 1 else _Chosen(value)
    if (isinstance(value, str) and not value.strip()) or value != value:  # not a number
        return None
    return value


def _order_of(ranker: Any, column: str, buckets: str) -> list[Any]:
    """Return the ids in Label Studio's ranker; `_` are those that nobody has put in a bucket."""
    if not isinstance(ranker, Mapping):
        raise RowError(f"column '{column}' holds a ranker without buckets")
    held = {name: ids for name, ids in ranker.items() if name != "_"}
    if len(held) < 2:
        return [one for ids in held.values() for one in ids]
    order = [name.strip() for name in buckets.split(">")]
    if sorted(order) != sorted(held):
        raise RowError(
            f"column '{column}' has the buckets {', '.join(held)}, which have no order: name them "
            f"from the best on, as in --columns ...,buckets={'>'.join(held)}"
        )
    return [one for name in order for one in held[name]]


def _parsed(value: Any) -> Any:
    """Return a value, which in CSV may be JSON in text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json_value(value)
        except JsonError:
            return value
    return value


def _text_of(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    return next((item[name] for name in ("body", "text", "content") if item.get(name)), None)


def _names_of(item: Any) -> list[str]:
    """Return what a list's item is called: of Label Studio by its id, of Potato by its place."""
    if not isinstance(item, Mapping):
        return []
    return [str(item[name]) for name in ("id", "source_id", "position") if name in item]
