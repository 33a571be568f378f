"""Tables of answers and what was said of them: plain ones, and those of Argilla and Label Studio.

`--columns` tells which column holds the prompt, the answers, what was said and who said it. A plain
row has one judgement. A row of Argilla 2 (`to_list(flatten=True)`, `to_datasets()`, the hub) has
lists of responses, of which drafts and discarded ones are left out; a task of Label Studio's JSON
has annotations, of which cancelled ones are; JSON_MIN and CSV have a row for each annotation. What
was said is the better answer, or Argilla's ranking, or Label Studio's Pairwise or Ranker.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.errors import UsageError, nearest
from data.records import dense_ranks
from data.sources.values import RowError, as_text

LETTERS = "abcdefghi"
ANSWERS = "answers"
COLUMNS = {
    "prompt": "what was asked",
    **{letter: "an answer" for letter in LETTERS},
    ANSWERS: "a list of answers, in place of a, b ...",
    "winner": "what was said of them",
    "annotator": "who said so",
}
"""What a table's columns are mapped to; the last one may be left out."""
_TIES = ("tie", "same", "equal", "both")
_SIDES = {"left": 0, "right": 1}


def parse_columns(text: str) -> dict[str, str]:
    """Return the names of a table's columns by ours, of `prompt=q,a=left,b=right,winner=w`.

    Raises:
        UsageError: a name is none of `COLUMNS`, given twice or missing.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or not theirs or ours not in COLUMNS or ours in found:
            raise UsageError(
                f"--columns: '{part.strip()}' is no NAME=COLUMN, once for each of prompt, a, b, "
                f"... or answers, winner, annotator.{nearest(ours, COLUMNS)}"
            )
        found[ours] = theirs
    answers = [] if ANSWERS in found else ["a", "b"]
    if missing := [name for name in ("prompt", *answers, "winner") if name not in found]:
        raise UsageError(f"--columns: {', '.join(missing)} is missing, as in {missing[0]}=COLUMN")
    return found


def ranking_rows(
    row: Mapping[str, Any], columns: Mapping[str, str], dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield what was said in a table's row as rows of rankings.

    Args:
        row: as the file has it.
        columns: as `parse_columns` gives them.
        dropped: where judgements that are left out are counted.

    Raises:
        RowError: a column is missing, or what was said names none of the answers.
    """
    try:
        yield from _ranking_rows(row, columns, dropped)
    except RowError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RowError(
            f"it is no row of a plain table, of Argilla or of Label Studio ({error!r:.100})"
        ) from error


def _ranking_rows(
    row: Mapping[str, Any], columns: Mapping[str, str], dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    for said in _judgements(row, columns, dropped):
        for ours, theirs in columns.items():
            if theirs not in said and ours != "annotator":
                raise RowError(f"there is no column '{theirs}'; there are {', '.join(said)}")
        names, texts = _answers(said, columns)
        winner = _parsed(said[columns["winner"]])
        if winner is None or winner == [] or not str(winner).strip():
            dropped["nothing was said of the answers"] += 1
            continue
        who = said.get(columns.get("annotator", "annotator"))
        yield {
            "prompt": said[columns["prompt"]],
            "completions": texts,
            "ranks": _ranks(winner, names, columns["winner"]),
            **({} if who in (None, "") else {"annotator": _name(who)}),
        }


def _judgements(
    row: Mapping[str, Any], columns: Mapping[str, str], dropped: Counter[str]
) -> Iterator[Mapping[str, Any]]:
    """Yield a row for each judgement that counts."""
    question = f"{columns['winner']}.responses"
    if question in row:  # Argilla's; lists of other questions may have other lengths
        lists = (row.get(f"{question}{end}") or [] for end in ("", ".users", ".status"))
        for value, user, status in zip(*lists, strict=True):
            if status == "submitted":
                yield {**row, columns["winner"]: value, columns.get("annotator", "annotator"): user}
            else:
                dropped["a response that is a draft or discarded"] += 1
    elif isinstance(row.get("fields"), Mapping) and "responses" in row:
        raise RowError(
            "a nested export of Argilla does not tell drafts from what was submitted: export it "
            "by to_list(flatten=True) or to_datasets()"
        )
    elif isinstance(row.get("data"), Mapping) and "annotations" in row:  # Label Studio's JSON
        for one in row["annotations"]:
            if one.get("was_cancelled"):
                dropped["an annotation that was cancelled"] += 1
                continue
            values: dict[str, list[Any]] = {}
            for result in one["result"]:
                values.setdefault(result["from_name"], []).append(result["value"])
            who = {columns.get("annotator", "annotator"): one.get("completed_by")}
            yield {columns["winner"]: None, **row["data"], **values, **who}
    else:
        yield row


def _answers(
    row: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[list[dict[str, int]], list[Any]]:
    """Return the answers, and their places by what they may be called, the likeliest first."""
    if ANSWERS not in columns:
        letters = [letter for letter in LETTERS if letter in columns]
        texts = [row[columns[letter]] for letter in letters]
        own = {columns[letter].lower(): place for place, letter in enumerate(letters)}
        by_letter = {letter: place for place, letter in enumerate(letters)}
    else:
        items = _parsed(row[columns[ANSWERS]])
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise RowError(f"column '{columns[ANSWERS]}' holds no list of answers")
        texts = [one.get("body") if isinstance(one, Mapping) else one for one in items]
        ids = [str(one.get("id")) if isinstance(one, Mapping) else "" for one in items]
        own = {name.lower(): place for place, name in enumerate(ids) if name}
        by_letter = {LETTERS[place]: place for place in range(min(len(items), len(LETTERS)))}
    return [own, by_letter, {str(place + 1): place for place in range(len(texts))}], texts


def _ranks(said: Any, names: Sequence[Mapping[str, int]], column: str) -> list[int]:
    """Return the ranks of the answers by what was said of them."""
    size = len(names[-1])

    def place(name: Any) -> int:
        text = str(name).strip().lower()
        found = [known[text] for known in names if text in known]
        if not found:
            known_names = ", ".join(dict.fromkeys(one for known in names for one in known))
            raise RowError(f"column '{column}' says {text[:40]!r}; it is one of {known_names}, tie")
        return found[0]

    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], Mapping):
        if "selected" in said[0]:  # Label Studio's Pairwise
            said = said[0]["selected"]
            said = LETTERS[_SIDES[said]] if said in _SIDES else said
            names = names[1:]  # not what the columns are called
        elif "ranker" in said[0]:
            said = [one for bucket in said[0]["ranker"].values() for one in bucket]
    if isinstance(said, list):
        ranked = [isinstance(one, Mapping) and "rank" in one for one in said]
        pairs = (
            [(place(one["value"]), one["rank"]) for one in said]  # Argilla's ranking
            if said and all(ranked)
            else [(place(one), rank) for rank, one in enumerate(said, start=1)]
        )
        ranks = dict(pairs)
        if len(pairs) != size or len(ranks) != size or None in ranks.values():
            raise RowError(f"column '{column}' ranks {len(ranks)} of {size} answers")
        return dense_ranks([ranks[number] for number in range(size)])
    if str(said).strip().lower() in _TIES:
        return [1] * size
    if size != 2:
        raise RowError(f"column '{column}' names one answer of {size}, which ranks two alone")
    return [1, 2] if place(said) == 0 else [2, 1]


def _parsed(value: Any) -> Any:
    """Return a value, which in CSV may be JSON in text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _name(who: Any) -> str:
    """Return an annotator's name, of Label Studio's accounts the address."""
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    return as_text(str(who), "annotator")
