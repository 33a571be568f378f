"""The formats a row can have: told from its columns, and turned into records.

A row is a mapping of columns to values, from a JSON, Parquet or CSV file or a hub data set. What
is wrong with one row raises `RowError` (it counts as malformed), what is fine but of no use raises
`RowDropped` (counted apart, with its reason); `data.sources` knows the file and the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from data.errors import SourceError, nearest
from data.records import (
    Completion,
    Conversation,
    Document,
    PromptRow,
    Ranking,
    Record,
    dense_ranks,
)
from data.values import (
    RowDropped,
    RowError,
    as_list,
    as_messages,
    as_number,
    as_text,
    as_transcript,
    is_transcript,
    shared_text,
    shared_turns,
)

Row = Mapping[str, Any]

MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
QUESTION_COLUMNS = ("instruction", "question", "query")
ANSWER_COLUMNS = ("completion", "response", "answer", "output")
SCORE_COLUMNS = ("ranks", "rank", "scores")
POLICY_COLUMNS = ("policies", "models", "systems")
SOFT_PAIR, SOFT_RANKING = "probability", "probabilities"
"""Columns of soft labels: share for the chosen one; of each completion over each other one."""
TEXT_LAYOUTS = ("text", "text_blank_lines", "text_lines")

FORMATS: dict[str, str] = {
    "text": "text; in a text file the whole file, or what <|endoftext|> separates",
    "text_blank_lines": "a text file of documents separated by blank lines",
    "text_lines": "a text file with a document a line",
    "prompt_completion": "prompt + completion, strings or messages",
    "instruction": "instruction or question (+ input) + output, response, answer or completion",
    "messages": "messages (role/content) or conversations (from/value), the assistant's turn last",
    "prompt": "prompt, or messages with the user's turn last",
    "preference": "chosen + rejected (+ prompt), strings or messages",
    "hh": "chosen + rejected as Human:/Assistant: transcripts",
    "rankings": "prompt or messages + completions + ranks (lower is better) or scores (higher is)",
}

_ALWAYS = ("id", "meta", "annotator")
_ASKING = ("prompt", *MESSAGE_COLUMNS, *QUESTION_COLUMNS)
_USED: dict[str, frozenset[str]] = {
    "text": frozenset((*_ALWAYS, "text")),
    "prompt_completion": frozenset((*_ALWAYS, "prompt", *ANSWER_COLUMNS)),
    "instruction": frozenset((*_ALWAYS, "prompt", "input", *QUESTION_COLUMNS, *ANSWER_COLUMNS)),
    "messages": frozenset((*_ALWAYS, *MESSAGE_COLUMNS)),
    "prompt": frozenset((*_ALWAYS, *_ASKING)),
    "preference": frozenset((*_ALWAYS, *_ASKING, "chosen", "rejected", SOFT_PAIR)),
    "hh": frozenset((*_ALWAYS, "chosen", "rejected", SOFT_PAIR)),
    "rankings": frozenset(
        (*_ALWAYS, *_ASKING, "completions", *SCORE_COLUMNS, *POLICY_COLUMNS, SOFT_RANKING)
    ),
}


def check_format(name: str) -> None:
    """Refuse a format that does not exist.

    Raises:
        SourceError: names the formats there are.
    """
    if name != "auto" and name not in FORMATS:
        known = ", ".join(["auto", *FORMATS])
        raise SourceError(f"unknown format '{name}'; known: {known}.{nearest(name, FORMATS)}")


def detect(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """Return the format that a row's columns tell.

    When it has no use for a column that the recipe maps, the mapped columns alone decide.

    Raises:
        SourceError: no format has such columns; lists them and the known formats.
    """
    mapped = {name: row[name] for name in columns or {} if name in row}
    found = _detect(row)
    if found is None or not _USED[found].issuperset(mapped):
        found = _detect(mapped) or found
    if found is None:
        formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        raise SourceError(
            f"can't tell the format from the columns {', '.join(row) or '(none)'}; name one with "
            f"`format`, or map the columns with `columns: {{ours: theirs}}`. Known formats: "
            f"{formats}"
        )
    return found


def _detect(row: Row) -> str | None:
    def has(names: tuple[str, ...]) -> bool:
        return _first(row, names) is not None

    if "completions" in row and has(SCORE_COLUMNS):
        return "rankings"
    if "chosen" in row and "rejected" in row:
        both = is_transcript(row["chosen"]) and is_transcript(row["rejected"])
        return "hh" if both else "preference"
    if has(MESSAGE_COLUMNS):
        return _messages_or_prompt(row)
    if has(QUESTION_COLUMNS) and has(ANSWER_COLUMNS):
        return "instruction"
    asks = isinstance(row.get("prompt"), (str, list))
    if asks and has(ANSWER_COLUMNS):
        return "prompt_completion"
    if "text" in row:
        return "text"
    return "prompt" if asks or has(QUESTION_COLUMNS) else None


def _messages_or_prompt(row: Row) -> str:
    try:
        messages = as_messages(_first(row, MESSAGE_COLUMNS))
    except RowError:
        return "messages"
    return "prompt" if messages[-1]["role"] == "user" else "messages"


def map_columns(row: Row, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Return a row with columns under our names; the others stay.

    A column is named by its name, by a dotted path into nested values (`instances.0.output`), or
    by a template of columns in braces (`"{context} Question: {prompt}"`).

    Raises:
        RowError: the row lacks a column.
    """
    if not columns:
        return dict(row)
    taken = {ours: _look_up(row, theirs) for ours, theirs in columns.items()}
    moved = set(columns.values()) - set(columns)
    return {**{name: value for name, value in row.items() if name not in moved}, **taken}


def _look_up(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    if "{" in name:
        return re.sub(r"\{([^{}]+)\}", lambda match: _text_of(row, match[1]), name)
    value: Any = row
    for step in name.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, (list, tuple)) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            seen = ", ".join(row)
            raise RowError(f"no column '{name}'; columns: {seen}.{nearest(name, row)}")
    return value


def _text_of(row: Row, name: str) -> str:
    value = _look_up(row, name.strip())
    return value if isinstance(value, str) else "" if value is None else str(value)


def convert(row: Row, name: str, *, default_id: str = "") -> Record:
    """Return the record a row holds, read as the named format.

    Args:
        row: columns under our names.
        name: one of `FORMATS`.
        default_id: the record's id where the row has no `id`.

    Raises:
        RowError: a column is missing or holds something else.
        RowDropped: nothing is wrong, but the row is of no use.
    """
    given = row.get("id")
    identity = default_id if given is None or given == "" else str(given)
    return _CONVERTERS["text" if name in TEXT_LAYOUTS else name](row, identity)


def _first(row: Row, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _need(row: Row, *names: str) -> Any:
    value = _first(row, names)
    if value is None:
        raise RowError(
            f"no column '{names[0]}'; columns: {', '.join(row)}.{nearest(names[0], row)}"
        )
    return value


def _filled(text: str, what: str) -> str:
    if not text.strip():
        raise RowDropped(f"the {what} is empty")
    return text


def _document(row: Row, identity: str) -> Record:
    text = as_text(_need(row, "text"), "text")
    if not text.strip():
        raise RowDropped("empty text")
    return Document(text=text, id=identity)


def _prompt_completion(row: Row, identity: str) -> Record:
    prompt, completion = _need(row, "prompt"), _need(row, *ANSWER_COLUMNS)
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(
            prompt=_filled(as_text(prompt, "prompt"), "prompt"),
            completion=_filled(as_text(completion, "completion"), "completion"),
            id=identity,
        )
    opening = as_messages(prompt)
    answer = as_messages(completion, role="assistant")
    return _ending_in_answer(Conversation(messages=[*opening, *answer], id=identity))


def _instruction(row: Row, identity: str) -> Record:
    question = _filled(as_text(_need(row, *QUESTION_COLUMNS, "prompt"), "instruction"), "question")
    extra = as_text(row.get("input") or "", "input")
    answer = _filled(as_text(_need(row, *ANSWER_COLUMNS), "answer"), "answer")
    asked = f"{question}\n\n{extra}" if extra.strip() else question
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Conversation(messages=as_messages(turns), id=identity)


def _conversation(row: Row, identity: str) -> Record:
    messages = as_messages(_need(row, *MESSAGE_COLUMNS))
    return _ending_in_answer(Conversation(messages=messages, id=identity))


def _ending_in_answer(conversation: Conversation) -> Conversation:
    last = conversation.messages[-1]
    if last["role"] != "assistant":
        raise RowError(f"the last turn is the {last['role']}'s, not the assistant's")
    if not any(turn["role"] == "user" for turn in conversation.messages):
        raise RowError("the conversation has no turn of the user")
    _filled(last["content"], "assistant's last turn")
    return conversation


def _prompt_value(row: Row) -> Any:
    """Return the prompt: text that is not empty, or messages with the user's last."""
    value = _need(row, "prompt", *MESSAGE_COLUMNS, *QUESTION_COLUMNS)
    if isinstance(value, str) and not value.lstrip().startswith('[{"'):
        return _filled(as_text(value, "prompt"), "prompt")
    messages = as_messages(value)
    if messages[-1]["role"] != "user":
        raise RowError(f"the prompt ends with the {messages[-1]['role']}'s turn, not the user's")
    return messages


def _prompt(row: Row, identity: str) -> Record:
    used = {"id", "meta", "prompt", *MESSAGE_COLUMNS, *QUESTION_COLUMNS}
    meta = row.get("meta")
    if not isinstance(meta, Mapping):
        meta = {name: value for name, value in row.items() if name not in used}
    return PromptRow(prompt=_prompt_value(row), id=identity, meta=dict(meta))


def _preference(row: Row, identity: str) -> Record:
    chosen, rejected = _need(row, "chosen"), _need(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        chosen, rejected = as_text(chosen, "chosen"), as_text(rejected, "rejected")
        if row.get("prompt") is not None:
            return _pair(_prompt_value(row), chosen, rejected, row, identity)
        return _pair(*shared_text(chosen, rejected), row, identity)
    chosen, rejected = as_messages(chosen), as_messages(rejected)
    if [len(chosen), len(rejected)] == [1, 1] and row.get("prompt") is not None:
        prompt = _prompt_value(row)
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        chosen, rejected = [*prompt, *chosen], [*prompt, *rejected]
    return _pair(*shared_turns(chosen, rejected), row, identity)


def _transcripts(row: Row, identity: str) -> Record:
    chosen = as_transcript(_need(row, "chosen"), "chosen")
    rejected = as_transcript(_need(row, "rejected"), "rejected")
    return _pair(*shared_turns(chosen, rejected), row, identity)


def _pair(prompt: Any, chosen: str, rejected: str, row: Row, identity: str) -> Record:
    if chosen == rejected:
        raise RowDropped("chosen and rejected are the same")
    soft = row.get(SOFT_PAIR)
    return Ranking(
        prompt=prompt,
        completions=[chosen, rejected],
        ranks=[1, 2],
        id=identity,
        annotator=str(row.get("annotator") or ""),
        meta=dict(row["meta"]) if isinstance(row.get("meta"), Mapping) else {},
        probabilities=[] if soft is None else _soft_pair(as_number(soft, SOFT_PAIR)),
    )


def _soft_pair(share: float) -> list[list[float]]:
    if not 0 <= share <= 1:
        raise RowError(f"column '{SOFT_PAIR}' holds {share:g}, not a share from 0 to 1 for chosen")
    return [[0.5, share], [1 - share, 0.5]]


def _ranking(row: Row, identity: str) -> Record:
    prompt = _prompt_value(row)
    completions = [_completion(item) for item in as_list(_need(row, "completions"), "completions")]
    if len(completions) < 2:
        raise RowDropped("fewer than two completions")
    given = _first(row, ("ranks", "rank"))
    sign, name = (1.0, "ranks") if given is not None else (-1.0, "scores")
    marks = as_list(given if given is not None else _need(row, "ranks", "scores"), name)
    if len(marks) != len(completions):
        raise RowError(f"{len(completions)} completions but {len(marks)} {name}")
    policies = _first(row, POLICY_COLUMNS)
    named = isinstance(policies, (list, tuple)) and len(policies) == len(completions)
    found = Ranking(
        prompt=prompt,
        completions=completions,
        ranks=dense_ranks([sign * as_number(mark, name) for mark in marks]),
        id=identity,
        annotator=str(row.get("annotator") or ""),
        policies=[str(policy) for policy in policies] if named else [],
        meta=dict(row["meta"]) if isinstance(row.get("meta"), Mapping) else {},
    )
    soft = [
        [as_number(share, SOFT_RANKING) for share in as_list(shares, SOFT_RANKING)]
        for shares in as_list(row.get(SOFT_RANKING) or [], SOFT_RANKING)
    ]
    try:
        return replace(found, probabilities=soft)
    except ValueError as problem:
        raise RowError(str(problem)) from problem


def _completion(value: Any) -> str:
    if isinstance(value, str):
        return as_text(value, "completions")
    messages = as_messages([value] if isinstance(value, Mapping) else value, role="assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowError("a completion is more than one turn of the assistant")
    return messages[0]["content"]


_CONVERTERS: dict[str, Callable[[Row, str], Record]] = {
    "text": _document,
    "prompt_completion": _prompt_completion,
    "instruction": _instruction,
    "messages": _conversation,
    "prompt": _prompt,
    "preference": _preference,
    "hh": _transcripts,
    "rankings": _ranking,
}
