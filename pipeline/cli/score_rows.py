"""The rows of `rlhf score`: responses as they stand, rankings as a reward stage reads them.

A response to a plain prompt goes on from it as it stands, so that it begins with the space before
its first word. After one that was cut off, `ended: false`, a reward model reads no end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SourceError
from data.records import ENDED, Ranking
from data.sources.converting import convert
from data.sources.files import capped_lines, raw_rows
from data.sources.folders import PACKED, kind_of
from data.sources.formats import detect, map_columns
from data.sources.values import MAX_ROW, JsonError, RowDropped, RowError, json_value

if TYPE_CHECKING:
    from data.records import Prompt

_TABLES = (".json", ".csv", ".tsv", ".parquet", ".arrow")
_RANKED = ("rankings", "preference", "hh")


@dataclass(frozen=True)
class ScoreRow:
    """A row to score.

    Attributes:
        content: its columns.
        prompt: what was answered.
        responses: to be scored, one or more.
        ended: whether each ended by itself; None where it is not told.
        ranking: what annotators say of the responses; None where they say nothing.
        problem: why a row that has ranks is no ranking.
    """

    content: dict[str, Any]
    prompt: Prompt
    responses: list[str]
    ended: list[bool] | None = None
    ranking: Ranking | None = None
    problem: str = ""


def read_rows(path: Path, columns: Mapping[str, str]) -> Iterator[ScoreRow]:
    """Yield the rows of a file: tables and JSON by the suffix, all else as JSON Lines.

    Args:
        path: the file.
        columns: our name of a column -> its name, dotted path or template in the file.

    Raises:
        SourceError: a row can't be scored; names file and line.
    """
    for place, content in _contents(path):
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise SourceError(f"{place} holds half a character (a lone surrogate)") from error
        yield _parse(content, place, columns)


def _contents(path: Path) -> Iterator[tuple[str, Any]]:
    if kind_of(path) in _TABLES or path.name.lower().endswith(PACKED):
        for row in raw_rows(path):
            if row.value is None:
                raise SourceError(f"{row.where}: {row.problem}")
            yield row.where, row.value
        return
    with path.open("rb") as file:
        for number, line in capped_lines(path, file):
            if line is None:
                raise SourceError(f"{path}:{number} is longer than {MAX_ROW:,} bytes; cut it")
            if line.strip():
                yield f"{path}:{number}", _json(line, f"{path}:{number}")


def _json(line: bytes, place: str) -> Any:
    try:
        return json_value(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SourceError(f"{place} is no UTF-8 text; save the file as UTF-8") from error
    except JsonError as error:
        raise SourceError(f"{place} is no JSON ({error}); one object a line is needed") from error


def _parse(content: Any, place: str, columns: Mapping[str, str]) -> ScoreRow:
    problem = ""
    if isinstance(content, dict):
        try:
            ranking = _ranking(content, place, columns)
        except (RowDropped, RowError) as error:
            if "completions" not in content or not _is_prompt(content.get("prompt")):
                raise SourceError(f"{place}: {error}; mend the row or leave it out") from error
            ranking, problem = None, str(error)  # there is what to score all the same
        if ranking is not None:
            ended = ranking.ended or None
            return ScoreRow(content, ranking.prompt, ranking.completions, ended, ranking)
    if not isinstance(content, dict) or not _is_prompt(content.get("prompt")):
        raise SourceError(f"{place} has no `prompt` that is a text or a list of messages")
    if "completions" in content:
        responses = content["completions"]
    else:
        responses = [content.get("response", content.get("completion"))]
    texts = isinstance(responses, list) and all(isinstance(r, str) for r in responses)
    if not texts or not responses:
        raise SourceError(
            f"{place} has neither a `response` (a text) nor `completions` (a list of texts)"
        )
    ended = _ended(content, len(responses), place)
    return ScoreRow(content, content["prompt"], responses, ended, problem=problem)


def _ranking(row: dict[str, Any], place: str, columns: Mapping[str, str]) -> Ranking | None:
    """Return what annotators say of a row, None where it is of a format without ranks.

    Raises:
        SourceError: a column that is mapped is not there.
        RowError: a column holds something else.
        RowDropped: its answers are no different ones.
    """
    try:
        mapped = map_columns(row, columns)
    except RowError as error:
        raise SourceError(f"{place}: {error}") from error
    try:
        name = detect(mapped, columns)
    except SourceError:
        return None
    if name not in _RANKED:
        return None
    record = convert(
        mapped,
        name,
        default_id=place.rpartition("/")[2],
        columns=columns,
        format_named=False,
    )
    return record if isinstance(record, Ranking) else None


def _ended(content: dict[str, Any], size: int, place: str) -> list[bool] | None:
    value = content.get(ENDED)
    if value is None:
        return None
    ended = value if isinstance(value, list) else [value]
    if len(ended) != size or not all(isinstance(one, bool) for one in ended):
        raise SourceError(
            f"{place} has `{ENDED}` {value!r:.60}; it is true or false, or a list of that for each "
            "of `completions`"
        )
    return ended


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in value
        )
    return isinstance(value, str)
