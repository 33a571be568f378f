"""Rows as records: what is asked by `data.sources.asking`, the answers by the row's format.

What is wrong with one row raises `RowError` (it counts as malformed), what is fine but of no use
raises `RowDropped` (counted apart, with its reason); `data.sources.read` knows the file and the
line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.errors import nearest
from data.records import (
    ENDED,
    Completion,
    Conversation,
    Document,
    Message,
    Prompt,
    PromptRow,
    Ranking,
    Record,
    beside_content,
    dense_ranks,
    endings_in,
)
from data.sources.asking import (
    ASKING_COLUMNS,
    MESSAGE_COLUMNS,
    QUESTION_COLUMNS,
    QUESTIONS,
    Row,
    asked,
    asking,
    holds,
    picked,
)
from data.sources.formats import (
    ANSWER_COLUMNS,
    LABEL_COLUMNS,
    POLICY_COLUMNS,
    SOFT_PAIR,
    SOFT_RANKING,
    SUBSET,
    TEXT_LAYOUTS,
    first,
)
from data.sources.labelled import extract, labelled, tagged
from data.sources.shared import as_transcript, shared_text, shared_turns
from data.sources.turns import as_messages, is_nothing, turns_in
from data.sources.values import (
    RowDropped,
    RowError,
    as_list,
    as_number,
    as_text,
    listed,
    parsed_object,
)

_ABOUT_ANSWERS = ("rationale", "explanation", "reason", "feedback", "critique", "comment", "note")
"""Words in the names of columns that speak of the answers."""
_WORDS, _LETTERS = 4, 10
"""So many words, or letters of a text without spaces, are more than a name."""


def convert(
    row: Row,
    name: str,
    *,
    default_id: str = "",
    columns: Mapping[str, str] | None = None,
    format_named: bool = True,
) -> Record:
    """Return the record a row holds, read as the named format.

    Args:
        row: columns under our names.
        name: one of `FORMATS`.
        default_id: the record's id where the row has no `id`.
        columns: those that the recipe maps; a question among them is all that is asked.
        format_named: by the recipe; False where it was told from the columns.

    Raises:
        RowError: a column is missing or holds something else.
        RowDropped: nothing is wrong, but the row is of no use.
    """
    given = row.get("id")
    identity = default_id if given is None or given == "" else str(given)
    reading = _Reading(row, identity, picked(columns), format_named)
    return _CONVERTERS["text" if name in TEXT_LAYOUTS else name](reading)


@dataclass(frozen=True)
class _Reading:
    """A row on the way to a record."""

    row: Row
    identity: str
    only: Collection[str]
    format_named: bool

    def asked(self, **known: Any) -> Prompt | None:
        return asked(self.row, only=self.only, **known)

    @property
    def meta(self) -> dict[str, Any]:
        subset = self.row.get(SUBSET)
        told = {} if is_nothing(subset) else {SUBSET: subset}
        return {**told, **(parsed_object(self.row.get("meta")) or {})}


def _need(row: Row, *names: str) -> Any:
    value = first(row, names)
    if value is None:
        near = nearest(names[0], (name for name in row if name != names[0]))
        raise RowError(f"no column '{names[0]}'; columns: {listed(row)}.{near}")
    return value


def _filled(text: str, what: str) -> str:
    if not text.strip():
        raise RowDropped(f"the {what} is empty")
    return text


def _document(reading: _Reading) -> Record:
    text = as_text(_need(reading.row, "text"), "text")
    if not text.strip():
        raise RowDropped("empty text")
    return Document(text=text, id=reading.identity)


def _needed_prompt(reading: _Reading, answers: Collection[str] = ()) -> Prompt:
    """Return what is asked: text that is not empty, or turns with the user's or a tool's last."""
    prompt = reading.asked(answers=answers)
    if prompt is None:
        value = _need(reading.row, "prompt", *MESSAGE_COLUMNS, *QUESTION_COLUMNS)
        if turns_in(value) is None and not isinstance(value, str):
            as_messages(value)
        raise RowDropped("the prompt is empty")
    if isinstance(prompt, str):
        return _filled(prompt, "prompt")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowError(f"the prompt ends with the {prompt[-1]['role']}'s turn, not the user's")
    return prompt


def _as_turns(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _answered(reading: _Reading) -> tuple[Prompt, Any]:
    """Return what is asked and its answer, which is no bad one."""
    row = reading.row
    answer = _need(row, *ANSWER_COLUMNS)
    if str(first(row, LABEL_COLUMNS)).lower() == "false":
        raise RowDropped("its label says that the answer is one to avoid")
    answers = [turn["content"] for turn in as_messages(answer, role="assistant")]
    return _needed_prompt(reading, answers), answer


def _prompt_completion(reading: _Reading) -> Record:
    prompt, completion = _answered(reading)
    if isinstance(prompt, str) and turns_in(completion) is None:
        completion = _filled(as_text(completion, "completion"), "completion")
        return Completion(prompt=prompt, completion=completion, id=reading.identity)
    answer = as_messages(completion, role="assistant")
    return _ending_in_answer(
        Conversation(messages=[*_as_turns(prompt), *answer], id=reading.identity)
    )


def _instruction(reading: _Reading) -> Record:
    question, answer = _answered(reading)
    if turns_in(answer) is None:
        answer = _filled(as_text(answer, "answer"), "answer")
    turns = [*_as_turns(question), *as_messages(answer, role="assistant")]
    return _ending_in_answer(Conversation(messages=turns, id=reading.identity))


def _conversation(reading: _Reading) -> Record:
    messages = as_messages(_need(reading.row, *MESSAGE_COLUMNS))
    chat = reading.asked(turns=messages)
    assert chat is not None and not isinstance(chat, str)
    return _ending_in_answer(Conversation(messages=chat, id=reading.identity))


def _ending_in_answer(conversation: Conversation) -> Conversation:
    last = conversation.messages[-1]
    if last["role"] != "assistant":
        raise RowError(f"the last turn is the {last['role']}'s, not the assistant's")
    if not any(turn["role"] == "user" for turn in conversation.messages):
        raise RowError("the conversation has no turn of the user")
    answers = [turn for turn in conversation.messages if turn["role"] == "assistant"]
    if all(turn.get("weight") == 0 for turn in answers):
        raise RowDropped("no turn of the assistant is to be learned: all have weight 0")
    if not beside_content(last):
        _filled(last["content"], "assistant's last turn")
    return conversation


def _prompt(reading: _Reading) -> Record:
    row = reading.row
    meta = parsed_object(row.get("meta"))
    if meta is None:
        read = {"id", *(name for name in asking(row, reading.only) if name in QUESTIONS)}
        empty = {name for name in (*QUESTIONS, "meta") if is_nothing(row.get(name))}
        meta = {name: value for name, value in row.items() if name not in read | empty}
    return PromptRow(prompt=_needed_prompt(reading), id=reading.identity, meta=dict(meta))


def _preference(reading: _Reading) -> Record:
    chosen, rejected = _need(reading.row, "chosen"), _need(reading.row, "rejected")
    if turns_in(chosen) is None and turns_in(rejected) is None and isinstance(chosen, str):
        chosen, rejected = as_text(chosen, "chosen"), as_text(rejected, "rejected")
        if any(name in reading.row for name in ASKING_COLUMNS) and (
            reading.asked() is not None or reading.row.get("prompt") is not None
        ):
            return _pair(_needed_prompt(reading, (chosen, rejected)), chosen, rejected, reading)
        parts = shared_text(chosen, rejected)
        _no_other_question(reading, parts[0])
        return _pair(*parts, reading)
    left, right = (as_messages(value, role="assistant") for value in (chosen, rejected))
    answers = (left[-1]["content"], right[-1]["content"])
    if len(left) == len(right) == 1 or left[0]["role"] == "assistant":
        prompt_before = reading.asked(answers=answers)
        if prompt_before is not None:
            opening = _as_turns(prompt_before)
            left, right = [*opening, *left], [*opening, *right]
    turns, better, worse = shared_turns(left, right)
    prompt = reading.asked(turns=turns, answers=answers)
    return _pair(prompt, _only_text(better), _only_text(worse), reading)


def _only_text(answer: Message) -> str:
    """Return an answer that is compared as text; calls of tools are no text."""
    if answer.get("tool_calls"):
        raise RowError("an answer to be compared holds tool_calls, which have no place in text")
    return answer["content"]


def _no_other_question(reading: _Reading, shared: str) -> None:
    """Refuse to take shared words for the prompt where an unknown column may be what was asked."""
    if reading.format_named:
        return
    for name, value in reading.row.items():
        spoken = any(word in name.lower() for word in (*_ABOUT_ANSWERS, "chosen", "rejected"))
        if name in ASKING_COLUMNS or spoken or not isinstance(value, str):
            continue
        if _looks_asked(value) and not holds((shared,), value):
            raise RowError(
                f"no known column asks, but '{name}' may: map it with `columns: {{prompt: "
                f"{name}}}`, or say `format: preference` where the words that chosen and rejected "
                "both begin with are the prompt"
            )


def _looks_asked(text: str) -> bool:
    bare = text.strip()
    if "://" in bare.split(maxsplit=1)[0] if bare else True:
        return False
    if bare.endswith(("?", "？", "؟")) or len(bare.split()) >= _WORDS:
        return True
    return sum(letter.isalpha() and letter > "\u0dff" for letter in bare) >= _LETTERS


def _transcripts(reading: _Reading) -> Record:
    chosen = as_transcript(_need(reading.row, "chosen"), "chosen")
    rejected = as_transcript(_need(reading.row, "rejected"), "rejected")
    turns, better, worse = shared_turns(chosen, rejected)
    answers = (better["content"], worse["content"])
    prompt = reading.asked(turns=turns, answers=answers)
    return _pair(prompt, *answers, reading)


def _pair(prompt: Any, chosen: str, rejected: str, reading: _Reading) -> Record:
    if chosen == rejected:
        raise RowDropped("chosen and rejected are the same")
    if not (chosen.strip() or rejected.strip()):
        raise RowDropped("chosen and rejected are both empty")
    soft = reading.row.get(SOFT_PAIR)
    return Ranking(
        prompt=prompt,
        completions=[chosen, rejected],
        ranks=[1, 2],
        id=reading.identity,
        annotator=str(reading.row.get("annotator") or ""),
        meta=reading.meta,
        probabilities=[] if soft is None else _soft_pair(as_number(soft, SOFT_PAIR)),
        ended=_ended(reading.row.get(ENDED), 2),
    )


def _ended(value: Any, size: int) -> list[bool]:
    """Return whether each of so many completions ended by itself; empty where nothing is told.

    A column of that name that is no list is another's, such as the time of an end.
    """
    if not isinstance(value, (list, tuple)) and not str(value).lstrip().startswith("["):
        return []
    ended = as_list(value, ENDED)
    if ended and (len(ended) != size or not all(isinstance(one, bool) for one in ended)):
        raise RowError(f"column '{ENDED}' holds {value!r:.60}, not true or false of {size}")
    return ended


def _soft_pair(share: float) -> list[list[float]]:
    if not 0 <= share <= 1:
        raise RowError(f"column '{SOFT_PAIR}' holds {share:g}, not a share from 0 to 1 for chosen")
    return [[0.5, share], [1 - share, 0.5]]


def _ranking(reading: _Reading) -> Record:
    row = reading.row
    completions = [_completion(item) for item in as_list(_need(row, "completions"), "completions")]
    prompt = _needed_prompt(reading, completions)
    if len(completions) < 2:
        raise RowDropped("fewer than two completions")
    given = first(row, ("ranks", "rank"))
    sign, name = (1.0, "ranks") if given is not None else (-1.0, "scores")
    marks = as_list(given if given is not None else _need(row, "ranks", "scores"), name)
    if len(marks) != len(completions):
        raise RowError(f"{len(completions)} completions but {len(marks)} {name}")
    policies, size = first(row, POLICY_COLUMNS), len(completions)
    named = isinstance(policies, (list, tuple)) and len(policies) == size
    ranking = Ranking(
        prompt=prompt,
        completions=completions,
        ranks=dense_ranks([sign * as_number(mark, name) for mark in marks]),
        id=reading.identity,
        annotator=str(row.get("annotator") or ""),
        policies=[str(policy) for policy in policies] if named else [],
        meta=reading.meta,
        ended=_ended(row.get(ENDED), size) or endings_in(reading.meta, size),
    )
    _require_comparable(ranking)
    soft = [
        [as_number(share, SOFT_RANKING) for share in as_list(shares, SOFT_RANKING)]
        for shares in as_list(row.get(SOFT_RANKING) or [], SOFT_RANKING)
    ]
    try:
        return replace(ranking, probabilities=soft)
    except ValueError as problem:
        raise RowError(str(problem)) from problem


def _require_comparable(ranking: Ranking) -> None:
    """Drop a ranking that contradicts itself, or whose completions say nothing."""
    ranks: dict[str, int] = {}
    for text, rank in zip(ranking.completions, ranking.ranks, strict=True):
        if ranks.setdefault(text, rank) != rank:
            raise RowDropped("two completions are the same")
    if not any(map(str.strip, ranks)):
        raise RowDropped("all completions are empty")


def _completion(value: Any) -> str:
    if isinstance(value, str):
        return as_text(value, "completions")
    messages = as_messages(value, role="assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowError("a completion is more than one turn of the assistant")
    return _only_text(messages[0])


_CONVERTERS: Mapping[str, Callable[[_Reading], Record]] = {
    "text": _document,
    "prompt_completion": _prompt_completion,
    "instruction": _instruction,
    "messages": _conversation,
    "prompt": _prompt,
    "preference": _preference,
    "hh": _transcripts,
    "rankings": _ranking,
    "labelled": lambda reading: labelled(reading.row, reading.identity),
    "extracts": lambda reading: extract(reading.row, reading.identity),
    "tagged": lambda reading: tagged(reading.row, reading.identity),
}
