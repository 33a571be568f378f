"""What a row asks, whatever its columns are called: nothing of it is lost.

A row asks by all of its asking columns together. `system` comes first, `history` next, then the
question (`prompt`, turns of a chat, `instruction`, `question` ...), and below it what it is about
(`input`, `context`, `document` ...). A column whose words another one holds adds nothing; the
others are joined by a blank line, beside turns in the user's first turn. A recipe that maps a
question (`columns: {prompt: ...}`) has said what is asked: the other asking columns are not used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from data.records import Message, Prompt
from data.sources.shared import as_transcript, is_transcript
from data.sources.turns import as_messages, as_tools, is_nothing, turns_in
from data.sources.values import RowError, as_list, as_text

Row = Mapping[str, Any]

MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
QUESTION_COLUMNS = (
    "instruction",
    "question",
    "query",
    "problem",
    "post",
    "user_prompt",
    "user_query",
    "user_input",
)
ABOUT_COLUMNS = ("input", "context", "passage", "document", "article", "background")
"""What a question is about; with no question beside it, `input` or `context` is the question."""
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
HISTORY, TOOLS = "history", ("tools", "functions")
QUESTIONS = ("prompt", *MESSAGE_COLUMNS, *QUESTION_COLUMNS)
ALONE = ("input", "context")
LEAST_HELD = 12
"""Characters from which on a text counts as said where it stands inside another."""
FRAME_COLUMNS = (*SYSTEM_COLUMNS, HISTORY, *TOOLS)
ASKING_COLUMNS = (*QUESTIONS, *ABOUT_COLUMNS, *FRAME_COLUMNS)


def picked(columns: Mapping[str, str] | None) -> frozenset[str]:
    """Return the asking columns that a recipe maps, nothing where it maps no question."""
    mapped = frozenset(columns or ()) & {*QUESTIONS, *ABOUT_COLUMNS}
    return mapped if mapped & {*QUESTIONS} else frozenset()


def asking(row: Row, only: Collection[str] = ()) -> list[str]:
    """Return the columns of a row that ask, in the order in which they are read.

    Args:
        row: columns under our names.
        only: the asking columns to read, when not all.
    """
    holding = [
        name
        for name in (*QUESTIONS, *ABOUT_COLUMNS)
        if not is_nothing(row.get(name)) and (not only or name in only)
    ]
    return [name for name in holding if name in QUESTIONS or is_about(row[name])]


def is_about(value: Any) -> bool:
    """Tell whether a value is text, texts or turns, as what a question is about must be."""
    if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return True
    return isinstance(value, str) or turns_in(value) is not None


def asked(
    row: Row,
    *,
    only: Collection[str] = (),
    turns: Sequence[Message] | None = None,
    answers: Collection[str] = (),
    about: bool = True,
) -> Prompt | None:
    """Return all that a row asks, as text where nothing of it is a turn; None where nothing asks.

    Args:
        row: columns under our names.
        only: the asking columns to read, when not all.
        turns: turns of the row's chat that are known already, such as those two dialogues share.
        answers: the row's answers; a column of turns may end with one, which is no part of what
            is asked.
        about: False to leave out what the question is about.

    Raises:
        RowError: a column holds something else than text or turns, or columns hold different
            chats.
    """
    texts: list[tuple[str, str]] = []
    chat = None if turns is None else list(turns)
    for name in asking(row, only):
        if name in ABOUT_COLUMNS and not about:
            continue
        value = row[name]
        if name in MESSAGE_COLUMNS and isinstance(value, str) and value.lstrip().startswith("[{"):
            value = turns_in(value) or as_list(value, name)
        if turns_in(value) is not None or (name in MESSAGE_COLUMNS and not isinstance(value, str)):
            chat = _one_chat(chat, _without_answer(as_messages(value), answers), name)
        elif turns is not None and is_transcript(value):
            spoken = as_transcript(value, name)
            spoken = spoken[:-1] if not spoken[-1]["content"] else spoken
            chat = _one_chat(chat, _without_answer(spoken, answers), name)
        else:
            texts += [(name, one) for one in _texts(value, name)]
    history = _history(row, texts, chat)
    if not texts and chat is None:
        return None
    framed = any(not is_nothing(row.get(name)) for name in (*SYSTEM_COLUMNS, *TOOLS))
    if chat is None and not history and not framed:
        return "\n\n".join(_new(texts, ()))
    return _framed(row, history + _joined(chat or [], texts, own_turn=turns is None))


def _asks(chat: Sequence[Message]) -> bool:
    return any(turn["role"] == "user" for turn in chat)


def _texts(value: Any, name: str) -> list[str]:
    values = [value] if isinstance(value, str) or name in QUESTIONS else list(value)
    return [text for one in values if (text := as_text(one, name)).strip()]


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def holds(known: Iterable[str], text: str) -> bool:
    """Tell whether texts say another one: as a whole, or somewhere if it is no mere word or two."""
    bare = _squeezed(text)
    return any(
        bare == other or (len(bare) >= LEAST_HELD and bare in other)
        for other in map(_squeezed, known)
    )


def _new(texts: Sequence[tuple[str, str]], known: Collection[str]) -> list[str]:
    """Return the texts that neither what is known nor another text says."""
    contents = [text for _, text in texts]
    distinct = [
        text
        for at, text in enumerate(contents)
        if _squeezed(text) not in map(_squeezed, contents[:at])
    ]
    return [
        text
        for text in distinct
        if not holds(known, text) and not holds([one for one in distinct if one != text], text)
    ]


def _joined(
    chat: list[Message], texts: Sequence[tuple[str, str]], *, own_turn: bool
) -> list[Message]:
    """Return turns that say the texts too: in the user's first, or in a turn of their own."""
    new = _new(texts, [turn["content"] for turn in chat])
    if not new:
        return chat
    about = {text for name, text in texts if name in ABOUT_COLUMNS}
    above = [text for text in new if text not in about]
    below = [text for text in new if text in about]
    place = next((at for at, turn in enumerate(chat) if turn["role"] == "user"), None)
    if place is not None:
        content = "\n\n".join([*above, chat[place]["content"], *below])
        return [*chat[:place], {**chat[place], "content": content}, *chat[place + 1 :]]
    asking_turn: Message = {"role": "user", "content": "\n\n".join([*above, *below])}
    start = len(chat) if own_turn else sum(turn["role"] == "system" for turn in chat[:1])
    return [*chat[:start], asking_turn, *chat[start:]]


def _one_chat(chat: list[Message] | None, other: list[Message], name: str) -> list[Message]:
    """Return the chat that holds the turns of both."""
    if not chat or not other:
        return other or chat or []
    ours, theirs = ([turn["content"] for turn in side] for side in (chat, other))
    if all(holds(ours, text) for text in theirs):
        return chat
    if all(holds(theirs, text) for text in ours):
        return other
    if chat[0]["role"] == "assistant" or not _asks(other):
        return [*other, *chat]
    raise RowError(
        f"column '{name}' holds other turns than the row's other columns; say which ask with "
        f"`columns: {{{name}: {name}}}`"
    )


def _without_answer(turns: list[Message], answers: Collection[str]) -> list[Message]:
    ends = answers and turns[-1]["role"] == "assistant"
    return turns[:-1] if ends and turns[-1]["content"] in answers else turns


def _history(
    row: Row, texts: list[tuple[str, str]], chat: Sequence[Message] | None
) -> list[Message]:
    """Return the turns before, as turns or pairs of question and answer; text goes to the texts."""
    value = row.get(HISTORY)
    if is_nothing(value):
        return []
    if turns_in(value) is not None:
        before = as_messages(value)
    elif isinstance(value, str) and not value.lstrip().startswith("[["):
        texts.insert(0, ("prompt", as_text(value, HISTORY)))
        return []
    else:
        pairs = as_list(value, HISTORY)
        before = [turn for pair in pairs for turn in _pair(pair)]
    known = [turn["content"] for turn in chat or ()]
    return [] if all(holds(known, turn["content"]) for turn in before) else before


def _pair(value: Any) -> Iterable[Message]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise RowError("column 'history' holds neither turns nor pairs of question and answer")
    roles = ("user", "assistant")
    for role, text in zip(roles, value, strict=True):
        if not is_nothing(text):
            yield {"role": role, "content": as_text(text, HISTORY)}


def _framed(row: Row, chat: list[Message]) -> list[Message]:
    """Return turns with the row's system turn first and with its tools."""
    given = [(name, as_text(row[name], name)) for name in SYSTEM_COLUMNS if row.get(name)]
    system = "\n\n".join(_new([one for one in given if one[1].strip()], ()))
    if system:
        first = chat[0] if chat and chat[0]["role"] == "system" else None
        if first is None:
            chat = [{"role": "system", "content": system}, *chat]
        elif _squeezed(system) not in _squeezed(first["content"]):
            chat = [{**first, "content": f"{system}\n\n{first['content']}"}, *chat[1:]]
    tools = list(chat[0].get("tools", [])) if chat else []
    for tool in (one for name in TOOLS if row.get(name) for one in as_tools(row[name])):
        tools += [] if tool in tools else [tool]
    return [{**chat[0], "tools": tools}, *chat[1:]] if tools and chat else chat
