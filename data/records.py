"""The rows that the stages work on, and the small conversions between them.

A source yields records of one of these types: `Document` (text to pretrain on), `Completion` (a
plain prompt and its continuation), `Conversation` (chat turns, the last one the assistant's),
`PromptRow` (something to answer), `Ranking` (a prompt, its completions and their ranks; a
preference pair is a ranking of two), and what fine-tuning with a head learns: `Labelled` (a text
and its class), `Extract` (a question and what of a text answers it) and `Tagged` (a text and what
stands where in it). Ranks are dense, 1 is best, equal is a tie. `to_json` gives
the form on disk, with the keys of the dataclasses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

ROLES = ("system", "user", "assistant", "tool")
ENDED = "ended"
"""Column that tells of each completion whether it ended by itself; of a pair the chosen first."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn under which what was thought before it may stand."""


class Message(TypedDict):
    """One turn of a chat; `role` is one of `ROLES`. What else it holds goes to the template."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Calls of the assistant; arguments are an object where they are known to be one."""
    reasoning_content: NotRequired[str]
    """What the assistant thought before it answered; also `reasoning` and `thinking`."""
    reasoning: NotRequired[str]
    thinking: NotRequired[str]
    name: NotRequired[str]
    """Of the tool (or person) that speaks."""
    tool_call_id: NotRequired[str]
    """Which call a tool's turn answers."""
    tools: NotRequired[list[dict[str, Any]]]
    """The tools that the chat may call; those of several turns count together."""
    weight: NotRequired[int]
    """0 for a turn of the assistant that is not learned."""


Prompt = str | list[Message]
"""Plain text to be continued, or a chat whose last turn is the user's."""


@dataclass(frozen=True)
class Document:
    """A text to pretrain on."""

    text: str
    id: str = ""


@dataclass(frozen=True)
class Completion:
    """A plain prompt and the text that goes on from it."""

    prompt: str
    completion: str
    id: str = ""


@dataclass(frozen=True)
class Conversation:
    """A chat whose last turn is the assistant's."""

    messages: list[Message]
    id: str = ""


@dataclass(frozen=True)
class PromptRow:
    """Something to answer; `meta` is whatever a judge needs beside it."""

    prompt: Prompt
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """Ranks for the completions of one prompt, an annotator's or what several said together.

    Attributes:
        prompt: what was answered.
        completions: K answers.
        ranks: K of them, dense from 1.
        id: a name.
        annotator: who ranked.
        policies: who wrote each; empty where not known.
        meta: whatever a judge needs beside it.
        probabilities: soft labels, K rows of K: the share of annotators, or a chance, by which
            completion i is preferred to j, those of (i, j) and (j, i) adding up to 1; empty where
            there are none.
        ended: whether each completion ended by itself, False where it was cut off; empty where all
            did, or nobody knows.
    """

    prompt: Prompt
    completions: list[str]
    ranks: list[int]
    id: str = ""
    annotator: str = ""
    policies: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    probabilities: list[list[float]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse ranks, ends and soft labels that do not fit the completions."""
        if self.ended and len(self.ended) != len(self.completions):
            raise ValueError(f"{len(self.completions)} completions but {len(self.ended)} ended")
        if len(self.completions) != len(self.ranks):
            raise ValueError(f"{len(self.completions)} completions but {len(self.ranks)} ranks")
        if list(self.ranks) != dense_ranks(self.ranks):
            raise ValueError(f"ranks {self.ranks} are not dense from 1; use dense_ranks()")
        if self.probabilities:
            _check_probabilities(self.probabilities, len(self.completions))

    @property
    def endings(self) -> list[bool]:
        """Whether each completion is taken as ended: where nobody knows, it is."""
        return self.ended or [True] * len(self.completions)


def _check_probabilities(rows: Sequence[Sequence[float]], size: int) -> None:
    if [len(row) for row in rows] != [size] * size:
        raise ValueError(f"probabilities of {size} completions are {size} rows of {size} numbers")
    for i in range(size):
        for j in range(i):
            there, back = rows[i][j], rows[j][i]
            if not 0 <= there <= 1 or abs(there + back - 1) > 1e-6:
                raise ValueError(
                    f"probabilities {there:g} and {back:g} of completions {i} and {j} over each "
                    "other are no shares that add up to 1"
                )


def endings_in(meta: Mapping[str, Any], size: int) -> list[bool]:
    """Return what `meta` tells of the ends of so many completions; empty where it tells nothing.

    Tasks for people tell it there.
    """
    ended = meta.get(ENDED)
    if not isinstance(ended, list) or len(ended) != size:
        return []
    return list(ended) if all(isinstance(one, bool) for one in ended) else []


@dataclass(frozen=True)
class Labelled:
    """A text, or two that go together, and its class."""

    text: str
    label: str
    pair: str = ""
    id: str = ""


@dataclass(frozen=True)
class Extract:
    """A question and the places of a text that answer it: the first character, and the words."""

    question: str
    context: str
    answers: list[tuple[int, str]]
    id: str = ""


@dataclass(frozen=True)
class Tagged:
    """A text and its entities, which lie apart: first character, the one behind it, label."""

    text: str
    spans: list[tuple[int, int, str]]
    id: str = ""


Record = Document | Completion | Conversation | PromptRow | Ranking | Labelled | Extract | Tagged

_BY_KEYS: tuple[tuple[str, type[Any]], ...] = (
    ("completions", Ranking),
    ("completion", Completion),
    ("messages", Conversation),
    ("prompt", PromptRow),
    ("text", Document),
)


def dense_ranks(ranks: Sequence[float]) -> list[int]:
    """Renumber ranks of any origin and spacing to 1, 2, ...; the smallest is the best.

    >>> dense_ranks([0, 3, 3, 1])
    [1, 3, 3, 2]
    """
    order = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return [order[rank] for rank in ranks]


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as a JSON object; fields that are empty are left out."""
    return {
        entry.name: getattr(record, entry.name)
        for entry in dataclasses.fields(record)
        if (entry.default == dataclasses.MISSING and entry.default_factory == dataclasses.MISSING)
        or getattr(record, entry.name)
    }


def prompt_hash(prompt: Prompt) -> str:
    """Return a sha256 (hex) of a prompt: the same for the same turns, whatever they are for."""
    text = prompt if isinstance(prompt, str) else _canonical(prompt)
    kind = "plain" if isinstance(prompt, str) else "chat"
    return hashlib.sha256(f"{kind}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(messages: Iterable[Message]) -> str:
    """Return messages as one line of JSON that depends on nothing but their content."""
    turns = [
        [turn["role"], turn["content"], *([beside] if (beside := beside_content(turn)) else [])]
        for turn in messages
    ]
    return json.dumps(turns, ensure_ascii=False, sort_keys=True)


def beside_content(turn: Message) -> dict[str, Any]:
    """Return what a turn holds beside role and content, such as calls of tools."""
    return {k: v for k, v in turn.items() if k not in ("role", "content", "weight")}


def template_input(
    messages: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Return turns as a chat template takes them, and the tools that it takes beside them."""
    given = list(messages)
    tools: list[dict[str, Any]] = []
    for tool in (tool for turn in given for tool in turn.get("tools") or ()):
        tools += [] if tool in tools else [tool]
    turns = [{k: v for k, v in turn.items() if k not in ("weight", "tools")} for turn in given]
    return turns, tools or None


def arguments_as_text(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn with the arguments of its calls as JSON text."""
    made = dict(turn)
    if "tool_calls" in turn:
        calls = [{**call, "function": dict(call["function"])} for call in turn["tool_calls"]]
        for call in calls:
            given = call["function"].get("arguments")
            if given is not None and not isinstance(given, str):
                call["function"]["arguments"] = json.dumps(given, ensure_ascii=False)
        made["tool_calls"] = calls
    return made


def turn_text(turn: Message) -> str:
    """Return all that a turn says as text, for a reader: calls and reasoning as JSON below it."""
    beside = beside_content(turn)
    lines = [f"{key}: {json.dumps(held, ensure_ascii=False)}" for key, held in beside.items()]
    return "\n".join([*([turn["content"]] if turn["content"] or not lines else []), *lines])


def prompt_of(record: Record) -> Prompt:
    """Return what a record answers: its prompt, or the turns before the assistant's last.

    A `Document` has no prompt, nor has what fine-tuning learns; the text stands for it (as a key
    for splitting).
    """
    if isinstance(record, (Document, Labelled, Tagged)):
        return record.text
    if isinstance(record, Extract):
        return record.context
    if isinstance(record, Conversation):
        return record.messages[:-1]
    return record.prompt


def to_prompt(record: Record) -> PromptRow:
    """Return the prompt of any record that has one.

    Raises:
        TypeError: a document has none, nor has a row with labels.
    """
    if isinstance(record, PromptRow):
        return record
    if isinstance(record, (Document, Labelled, Extract, Tagged)):
        raise TypeError(f"a {type(record).__name__} holds no prompt")
    meta = record.meta if isinstance(record, Ranking) else {}
    return PromptRow(prompt=prompt_of(record), id=record.id, meta=meta)


def with_instruction(record: Record, instruction: str) -> Record:
    """Return a record with a line more below what it asks last.

    Raises:
        TypeError: it asks nothing.
    """
    if isinstance(record, Conversation):
        *asked, answer = record.messages
        return replace(record, messages=[*_with_line(asked, instruction), answer])
    if isinstance(record, (Completion, PromptRow, Ranking)):
        if isinstance(record.prompt, str):
            return replace(record, prompt=f"{record.prompt}\n{instruction}")
        return replace(record, prompt=_with_line(record.prompt, instruction))
    raise TypeError(f"a {type(record).__name__} asks nothing")


def as_chat(record: Record) -> Record:
    """Return a record whose plain prompt is a turn of the user; spaces around texts go.

    Raises:
        TypeError: it asks nothing.
    """
    if isinstance(record, (Document, Labelled, Extract, Tagged)):
        raise TypeError(f"a {type(record).__name__} asks nothing")
    if isinstance(record, Completion):
        turns = chat(record.prompt.strip(), record.completion.strip())
        return Conversation(messages=turns, id=record.id)
    if isinstance(record, Conversation) or not isinstance(record.prompt, str):
        return record
    prompt = chat(record.prompt.strip())
    if isinstance(record, Ranking):
        stripped = [text.strip() for text in record.completions]
        return replace(record, prompt=prompt, completions=stripped)
    return replace(record, prompt=prompt)


def _with_line(turns: list[Message], line: str) -> list[Message]:
    last: Message = {**turns[-1], "content": f"{turns[-1]['content']}\n{line}"}
    return [*turns[:-1], last]


def answer_of(record: Record) -> dict[str, object]:
    """Return the `answer` that a demonstration holds, for rewards that compare with it."""
    if isinstance(record, Conversation):
        return {"answer": record.messages[-1]["content"]}
    return {"answer": record.completion} if isinstance(record, Completion) else {}


def to_ranking(record: Record) -> Ranking:
    """Return a record that is a ranking; any other is a `TypeError`."""
    if not isinstance(record, Ranking):
        raise TypeError(f"a {type(record).__name__} is no ranking")
    return record


def to_best(ranking: Ranking) -> Conversation | Completion:
    """Return the best completion that ended by itself as a demonstration; the first that tie.

    One that was cut off is no answer to imitate: its end would be learned where it has none. Where
    none ended, see `answered`, it is the best of all.
    """
    ended = [place for place, complete in enumerate(ranking.endings) if complete]
    first = min(ended or range(len(ranking.ranks)), key=ranking.ranks.__getitem__)
    best = ranking.completions[first]
    if isinstance(ranking.prompt, str):
        return Completion(prompt=ranking.prompt, completion=best, id=ranking.id)
    turns: list[Message] = [*ranking.prompt, {"role": "assistant", "content": best}]
    return Conversation(messages=turns, id=ranking.id)


def answered(record: Record) -> bool:
    """Tell whether something of a record ended by itself, so that it can be imitated."""
    return not isinstance(record, Ranking) or any(record.endings)


def to_demonstration(record: Record) -> Conversation | Completion:
    """Return a record as something to imitate: a conversation, a completion, a ranking's best.

    Raises:
        TypeError: prompts and documents hold no answer.
    """
    if isinstance(record, Ranking):
        return to_best(record)
    if isinstance(record, (Conversation, Completion)):
        return record
    raise TypeError(f"a {type(record).__name__} holds no answer to imitate")


def to_text(record: Record) -> str:
    """Return a record's text without any template: what a tokenizer may be trained on."""
    if isinstance(record, (Document, Tagged)):
        return record.text
    if isinstance(record, Labelled):
        return "\n".join(filter(None, (record.text, record.pair)))
    if isinstance(record, Extract):
        return f"{record.question}\n{record.context}"
    if isinstance(record, Completion):
        return record.prompt + record.completion
    if isinstance(record, Conversation):
        return "\n".join(turn_text(turn) for turn in record.messages)
    prompt = record.prompt
    opening = prompt if isinstance(prompt, str) else "\n".join(turn_text(t) for t in prompt)
    if isinstance(record, PromptRow):
        return opening
    return "\n".join([opening, *record.completions])


def chat(*turns: str, system: str | None = None) -> list[Message]:
    """Return turns that alternate from the user's on as messages.

    >>> chat("Hello?", "Yes.")[1]
    {'role': 'assistant', 'content': 'Yes.'}
    """
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for index, content in enumerate(turns):
        messages.append({"role": "user" if index % 2 == 0 else "assistant", "content": content})
    return messages
