"""What two answers share: their prompt, where no column holds it.

Texts are cut where a word begins: before a space that both have. Scripts without spaces (Chinese,
Japanese, Thai ...) are cut after the last punctuation, else where the texts part, and never inside
what a reader takes for one character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from data.records import Message
from data.sources.values import RowDropped, RowError, as_text

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u30ff\u3100-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]"
)
"""Letters of scripts that set no space between words."""
_WIDE_ENDS = frozenset("。．：；，、！？｡､…～」』）］】〉》〕｝།།၊။។៕")
"""Marks of such scripts that end a clause, or close a quotation."""
_ENDS = _WIDE_ENDS | frozenset(".:;,!?)]}”»।॥؟،؛۔።՞։")
_JOINERS = ("\u200d", "\u200c")
_PREFIXED = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")
"""Vowels of Thai and Lao that are written before their consonant."""


def is_transcript(value: object) -> bool:
    """Tell whether a value is a dialogue written as Human: and Assistant: paragraphs."""
    return isinstance(value, str) and value.lstrip("\n").startswith(("Human:", "Assistant:"))


def as_transcript(value: object, column: str) -> list[Message]:
    """Return the turns of a transcript; paragraphs of one speaker in a row become one turn."""
    text = as_text(value, column)
    if not is_transcript(text):
        raise RowError(f"column '{column}' is no transcript: it does not begin with 'Human:'")
    pieces = _SPEAKER.split("\n\n" + text.lstrip("\n"))[1:]
    turns: list[Message] = []
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            joined = f"{turns[-1]['content']}\n\n{words.strip()}".strip()
            turns[-1] = {"role": role, "content": joined}
        else:
            turns.append({"role": role, "content": words.strip()})
    return turns


def to_transcript(turns: Sequence[Message]) -> str | None:
    """Return turns as a transcript; None where it would be read as other turns, or none."""
    speakers = {"user": "Human", "assistant": "Assistant"}
    if any(turn["role"] not in speakers for turn in turns):
        return None
    text = "".join(f"\n\n{speakers[turn['role']]}: {turn['content'].strip()}" for turn in turns)
    said = [(turn["role"], turn["content"].strip()) for turn in turns]
    read = [(turn["role"], turn["content"]) for turn in as_transcript(text, "text")]
    return text if read == said else None


def shared_turns(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], Message, Message]:
    """Return the turns two dialogues share, and the two answers that follow them."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise RowError(f"'{name}' ends with the {turns[-1]['role']}'s turn")
    if len(chosen) == 1 or len(rejected) == 1:
        raise RowError("there is no prompt: neither a column nor turns that both share")
    if chosen[:-1] != rejected[:-1]:
        raise RowDropped("chosen and rejected part before the last answer")
    if chosen[-2]["role"] not in ("user", "tool"):
        raise RowError(f"the turn before the last answer is the {chosen[-2]['role']}'s")
    return chosen[:-1], chosen[-1], rejected[-1]


def shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return the words that two texts begin with, and what follows in each.

    The prompt ends before a space, so that no word is cut, or where a script without spaces may be
    cut; neither rest is empty.

    >>> shared_text("The sky is blue.", "The sky is black.")
    ('The sky is', ' blue.', ' black.')
    >>> shared_text("问：天空？答：蓝色。", "问：天空？答：黑色。")
    ('问：天空？答：', '蓝色。', '黑色。')
    """
    if chosen == rejected:
        raise RowDropped("chosen and rejected are the same")
    most = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        most += 1
    most = max(0, min(most, len(chosen) - 1, len(rejected) - 1))
    end = _cut(chosen, rejected, most)
    if not chosen[:end].strip():
        raise RowError("there is no prompt: no column, and chosen and rejected share no beginning")
    return chosen[:end], chosen[end:], rejected[end:]


def _cut(chosen: str, rejected: str, most: int) -> int:
    """Return the last place up to `most` where both texts may be cut, 0 where there is none."""

    def last(allowed: Callable[[int], bool]) -> int:
        ends = (end for end in range(most, 0, -1) if allowed(end))
        return next((end for end in ends if _whole(chosen, end) and _whole(rejected, end)), 0)

    end = last(
        lambda end: (
            chosen[end - 1] in _WIDE_ENDS or (chosen[end].isspace() and rejected[end].isspace())
        )
    )
    if not chosen[:end].strip():
        # No space and no such mark: after any mark, or between letters of such a script.
        end = last(lambda end: chosen[end - 1] in _ENDS or bool(_UNSPACED.match(chosen[end - 1])))
    return len(chosen[:end].rstrip())


def _whole(text: str, end: int) -> bool:
    """Tell whether a text may be cut at a place without splitting a character as it is read."""
    before, after = text[end - 1], text[end]
    if before in _JOINERS or after in _JOINERS or before in _PREFIXED:
        return False
    if (before, after) == ("\r", "\n") or after in "\u0e33\u0eb3":
        return False
    if unicodedata.category(after) in ("Mn", "Mc", "Me") or "\U0001f3fb" <= after <= "\U0001f3ff":
        return False
    if "\U000e0020" <= after <= "\U000e007f" or "\u1160" <= after <= "\u11ff":
        return False
    if "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff":
        return False
    return not (_is_flag(after) and _flags_before(text, end) % 2)


def _is_flag(letter: str) -> bool:
    return "\U0001f1e6" <= letter <= "\U0001f1ff"


def _flags_before(text: str, end: int) -> int:
    """Return how many regional letters stand right before a place; a flag is a pair of them."""
    count = 0
    while count < end and _is_flag(text[end - 1 - count]):
        count += 1
    return count
