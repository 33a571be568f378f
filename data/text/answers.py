"""Finds the assistant's answers in a rendered chat: which tokens of a row are learned.

An answer is learned as it is sampled: the row begins with the prompt that sampling renders for it,
what is learned begins right behind that, and a token that ends the turn is the last of it. The
template's `{% generation %}` marks say which answers are learned, and which pieces of them; they
are not trusted with where an answer begins and ends. A template without marks has all answers
learned. What does not hold for an answer leaves it out, and is noted.

What a tool put into an answer is not learned: sampling puts it there. It is encoded by itself, as
sampling does, and so is what stands before and behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import ModelError
from data.records import template_input
from data.text.continuation import opening_for
from data.text.control_tokens import (
    Encoded,
    control_spans,
    encode,
    encode_ids,
    opening_ids,
    render,
)
from data.text.templates import Span, apply_template, mask_method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Callable[[str], Sequence[tuple[str, bool]]]
"""From a text of an assistant to its pieces: written by it (True), or put there by a tool."""

_FIRST = "a chat begins with them, so that nothing asks for them"
_WEIGHTLESS = "their rows give them weight 0"
_REFUSED = "the chat template refuses the turns before them alone"
_OPENING = (
    "the chat template opens them otherwise for sampling than in training; make what "
    "add_generation_prompt writes the beginning of the rendered turn"
)
_CHANGED = "the chat template changes earlier turns, so that they are not what is sampled"
_UNMARKED = "the chat template marks none of their text"
_ENDLESS = (
    "the chat template ends their turn with no special token, so that a model would never end; "
    "put the end-of-sequence token behind the assistant's turn in it"
)
_MERGED = "their first token takes in the end of the prompt"


@dataclass
class AnswerNotes:
    """What was found of answers, and the tokens that end them.

    Attributes:
        left_out: why answers are not learned, and how many.
        mended: where the template's marks were not followed, and for how many answers.
        ends: ids of the tokens that end the learned answers, and how many they end.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """Return the notes as lines for the console and the log."""
        lost = [f"{n:,} answers are not learned: {why}" for why, n in self.left_out.most_common()]
        return [*lost, *(f"{n:,} answers: {what}" for what, n in self.mended.most_common())]


class _Whole(NamedTuple):
    """A rendered chat, its marks, what is only spelled, the control tokens of the template.

    Attributes:
        marks: what the template marks as the assistant's; None where it marks nothing anywhere.
        given: what tools put into its answers.
    """

    text: str
    marks: list[Span] | None
    typed: list[Span]
    controls: list[Span]
    given: list[Span]


class _Answer(NamedTuple):
    """Where an answer begins, which characters of it are learned, and the token that ends it."""

    start: int
    spans: list[Span]
    end: Span


def answer_mask(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    notes: AnswerNotes,
    split: Split | None = None,
    **options: Any,
) -> tuple[list[int], list[bool]]:
    """Return the ids of a conversation, and for each whether it is learned.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: the turns.
        notes: is told of what is left out.
        split: finds what tools put into answers; None where no tool is called.
        options: what else the template takes, such as `tools`.

    Raises:
        ModelError: there is no template, or it refuses the turns.
        ControlTokenError: a turn spells a control token that can't be kept as text.
    """
    rendering = render(tokenizer, messages, answer_next=False, **options)
    tools = options.get("tools") or template_input(messages)[1]
    marked = mask_method(tokenizer, tools) == "marks"
    chat = _Whole(
        rendering.text,
        rendering.marks if marked else None,
        rendering.typed,
        control_spans(tokenizer, rendering),
        [],
    )
    places = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    learned = [i for i in places if messages[i].get("weight") != 0]
    if len(learned) < len(places):
        notes.left_out[_WEIGHTLESS] += len(places) - len(learned)
    turns = [_locate(tokenizer, messages, i, chat, notes, options) for i in learned]
    answers = [answer for answer in turns if answer is not None]
    if split is not None:
        chat.given.extend(span for answer in answers for span in _given(chat, answer, split))
    encoded, firsts = _encoded(tokenizer, chat, answers)
    mask = [False] * len(encoded.ids)
    for answer, first in zip(answers, firsts, strict=True):
        if first is None:
            notes.left_out[_MERGED] += 1
            continue
        # From the answer's first token on, whose characters may begin before it (a space).
        spans = [(-1, answer.spans[0][1]), *answer.spans[1:]]
        for place in range(first, len(mask)):
            begin, end = encoded.offsets[place]
            if begin >= answer.end[1]:
                break
            mask[place] = any(a <= begin < b for a, b in spans) and not any(
                a <= begin < b for a, b in chat.given
            )
            if mask[place] and (begin, end) == answer.end:
                notes.ends[encoded.ids[place]] += 1
    return encoded.ids, mask


def _given(chat: _Whole, answer: _Answer, split: Split) -> list[Span]:
    """Return what tools put into an answer."""
    spans, at = [], answer.start
    for piece, own in split(chat.text[at : answer.end[0]]):
        spans += [] if own else [(at, at + len(piece))]
        at += len(piece)
    return spans


def _locate(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    place: int,
    chat: _Whole,
    notes: AnswerNotes,
    options: Mapping[str, Any],
) -> _Answer | None:
    """Return where one assistant's turn stands in the text; None where it can't be learned."""
    if place == 0:
        notes.left_out[_FIRST] += 1
        return None
    last = place == len(messages) - 1
    try:
        opened = apply_template(tokenizer, messages[:place], answer_next=True, **options).text
        upto = messages[: place + 1]
        closed = (
            chat.text
            if last
            else apply_template(tokenizer, upto, answer_next=False, **options).text
        )
    except ModelError:
        notes.left_out[_REFUSED] += 1
        return None
    if not closed.startswith(opened):
        notes.left_out[_OPENING] += 1
        return None
    # What a template writes behind a chat's last turn is not there where others follow.
    stop = len(closed) if chat.text.startswith(closed) else _shared(closed, chat.text)
    region, tail = (len(opened), stop), closed[stop:]
    end = _end(messages[place], region, chat)
    if tail and not (end and chat.text.endswith(tail)):
        notes.left_out[_CHANGED] += 1
    elif end is None or (not tail and chat.text[end[1] : stop].strip()):
        notes.left_out[_ENDLESS] += 1
    else:
        return _answer(messages[place], region, end, chat, notes)
    return None


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _end(turn: Mapping[str, Any], region: Span, chat: _Whole) -> Span | None:
    """Return the last control token behind the words of a turn, None where there is none."""
    start, stop = region
    words = str(turn.get("content") or "").strip()
    at = chat.text.find(words, start, stop) if words else -1
    words_end = start if at < 0 else at + len(words)
    ends = [span for span in chat.controls if words_end <= span[0] and span[1] <= stop]
    return ends[-1] if ends else None


def _answer(
    turn: Mapping[str, Any],
    region: Span,
    end: Span,
    chat: _Whole,
    notes: AnswerNotes,
) -> _Answer | None:
    start, stop = region
    if chat.marks is None:
        return _Answer(start, [(start, end[1])], end)
    marks = [(max(a, start), min(b, stop)) for a, b in chat.marks if a < stop and b > start]
    if not marks:
        notes.left_out[_UNMARKED] += 1
        return None
    if any(a < start for a, b in chat.marks if b > start and a < stop):
        notes.mended["the template's marks begin before them, where sampling does not"] += 1
    if any(b > stop for a, b in chat.marks if a < stop):
        notes.mended["the template's marks run on into the next turn; they end with theirs"] += 1
    if marks[-1][1] < end[1]:
        name = chat.text[end[0] : end[1]]
        notes.mended[f"the template's marks leave out {name}, which ends them; it is learned"] += 1
        marks[-1] = (marks[-1][0], end[1])
    return _Answer(start, _from_start(turn, start, marks, chat.text, notes), end)


def _from_start(
    turn: Mapping[str, Any], start: int, marks: list[Span], text: str, notes: AnswerNotes
) -> list[Span]:
    """Return the marks, with what the template alone writes before the first of them."""
    before = text[start : marks[0][0]]
    words = (str(value).strip() for key, value in turn.items() if key != "role" and value)
    if not before or any(word and word in before for word in words):
        return [(start, start), *marks] if before else marks
    if before.strip():
        notes.mended[f"the template's marks leave out {before!r} before them; it is learned"] += 1
    return [(start, marks[0][1]), *marks[1:]]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, chat: _Whole, answers: Sequence[_Answer]
) -> tuple[Encoded, list[int | None]]:
    """Return the row, and the first token of each answer; None where a prompt ends elsewhere.

    Where a prompt's last token and an answer's first would be one, the text is cut between them.
    """
    encoded = _encode_apart(tokenizer, chat)
    firsts = [_first(tokenizer, chat, encoded, answer.start) for answer in answers]
    cuts = [answer.start for answer, n in zip(answers, firsts, strict=True) if n is None]
    if not cuts:
        return encoded, firsts
    parted = _encode_apart(tokenizer, chat, cuts)
    if tokenizer.decode(parted.ids) != tokenizer.decode(encoded.ids):
        return encoded, firsts
    return parted, [_first(tokenizer, chat, parted, answer.start) for answer in answers]


def _encode_apart(
    tokenizer: PreTrainedTokenizerBase, chat: _Whole, cuts: Sequence[int] = ()
) -> Encoded:
    """Return the row, what tools put into it encoded by itself, and cut in other places, too."""
    whole = Encoded([], [])
    edges = sorted({0, len(chat.text), *(place for span in chat.given for place in span)})
    for start, stop in pairwise(edges):
        opening = ""
        if start:
            opening = opening_for(partial(encode_ids, tokenizer), chat.text[start:stop])
        shift = len(opening) - start
        piece = encode(
            tokenizer,
            opening + chat.text[start:stop],
            [(a + shift, b + shift) for a, b in chat.typed if start <= a and b <= stop],
            [cut + shift for cut in cuts if start <= cut < stop],
        )
        skipped = len(encode_ids(tokenizer, opening)) if opening else 0
        whole.ids.extend(piece.ids[skipped:])
        whole.offsets.extend((a - shift, b - shift) for a, b in piece.offsets[skipped:])
    return whole


def _first(
    tokenizer: PreTrainedTokenizerBase, chat: _Whole, encoded: Encoded, start: int
) -> int | None:
    """Return how many tokens the prompt of an answer has, None where they are not in the row."""
    before = [span for span in chat.controls if span[1] <= start]
    from_ = before[-1][0] if before else 0
    typed = [(a - from_, b - from_) for a, b in chat.typed if from_ <= a and b <= start]
    opening = opening_ids(tokenizer, chat.text[from_:start], typed)
    offsets = encoded.offsets
    place = next((i for i, (_, b) in enumerate(offsets) if b > start), len(offsets))
    # Tokens of no width, such as a lone space whose offsets are trimmed, are on either side.
    while place >= len(opening):
        if encoded.ids[place - len(opening) : place] == opening:
            return place
        if place == 0 or offsets[place - 1][0] < offsets[place - 1][1]:
            return None
        place -= 1
    return None
