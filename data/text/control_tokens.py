"""Tells the control tokens that a chat template writes from those that a text only spells.

A tokenizer reads `<|end|>` as the token that ends a turn wherever it stands, so that who types it
ends a turn. Here what a message, a plain prompt or a response spells stays text, and the template's
own tokens stay tokens; a text that spells none is tokenised as it always was.

Control tokens are the tokenizer's special tokens, and the added tokens that its template writes
around turns. `<think>` and the like in the assistant's own words are no control tokens: the
template and the model use them there. A tokenizer that a tokenizer stage saved with
`typed_control_tokens: tokens` reads all of them as tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from data.errors import ControlTokenError, ModelError, in_words
from data.text.templates import RenderedText, Span, apply_template, has_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTING = "typed_control_tokens"
"""Key of tokenizer_config.json; "tokens" lets what texts spell through as tokens."""

# Private-use characters: those that stand for the template's tokens on the way to the tokenizer,
# and those that stand for what messages spell on the way through the template.
_LIVE, _TYPED = 0xF0000, 0x100000
_SHORT = 100
_PROBES = ("\ue000", "\ue001", "\ue002")


class Encoded(NamedTuple):
    """Token ids and the characters that each stands for."""

    ids: list[int]
    offsets: list[Span]


class Rendering(NamedTuple):
    """A chat as text, what the template marks in it, and the control tokens that it only spells."""

    text: str
    marks: list[Span]
    typed: list[Span]


@dataclass
class _Guard:
    """What is known of one tokenizer.

    Attributes:
        signature: the state of the tokenizer that it was made for.
        names: all control tokens, the longest first.
        ids: their ids.
        own: finds control tokens in the assistant's words.
        given: finds them in all other words.
        openings: the ids of openings of turns that were seen.
    """

    signature: tuple[Any, ...]
    names: list[str]
    ids: list[int]
    own: re.Pattern[str]
    given: re.Pattern[str]
    openings: dict[str, list[int]] = field(default_factory=dict)
    backend: Any = None


_guards: WeakKeyDictionary[Any, _Guard] = WeakKeyDictionary()


def spelled(tokenizer: PreTrainedTokenizerBase, text: str, *, own: bool = False) -> list[Span]:
    """Return where a text, the assistant's `own` or not, spells control tokens that stay text."""
    guard = _guard(tokenizer)
    if reads_typed(tokenizer):
        return []
    return [match.span() for match in (guard.own if own else guard.given).finditer(text)]


def turn_spells(tokenizer: PreTrainedTokenizerBase, turn: Mapping[str, Any]) -> bool:
    """Tell whether a turn, its calls and tools too, spells control tokens that stay text."""
    guard, spellings = _guard(tokenizer), list[str]()
    _disguised(turn, guard.own if turn.get("role") == "assistant" else guard.given, spellings)
    return bool(spellings) and not reads_typed(tokenizer)


def reads_typed(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether control tokens that texts spell are tokens to this tokenizer, by its setting."""
    return bool(getattr(tokenizer, "init_kwargs", {}).get(SETTING) == "tokens")


def control_spans(tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> list[Span]:
    """Return where the template wrote control tokens, those spelled by messages left out."""
    typed = set(rendering.typed)
    spans = (match.span() for match in _guard(tokenizer).own.finditer(rendering.text))
    return [span for span in spans if span not in typed]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    answer_next: bool,
    **options: Any,
) -> Rendering:
    """Apply the chat template and find what the messages spell of control tokens.

    They go through the template in disguise, as private-use characters, so that its own tokens are
    told from them; what it writes must be the same but for the disguise.

    Raises:
        ModelError: there is no template, or it refuses the turns.
        ControlTokenError: the template does something else with a spelled control token.
    """
    plain = apply_template(tokenizer, messages, answer_next=answer_next, **options)
    spellings: list[str] = []
    guard = _guard(tokenizer)
    if reads_typed(tokenizer):
        return Rendering(*plain, typed=[])
    turns = [
        _disguised(turn, guard.own if turn.get("role") == "assistant" else guard.given, spellings)
        for turn in messages
    ]
    others = _disguised(options, guard.given, spellings)
    if not spellings:
        return Rendering(*plain, typed=[])
    _require_free(plain.text, _TYPED, len(spellings))
    hidden = apply_template(tokenizer, turns, answer_next=answer_next, **others)
    rendering = _undisguised(hidden, spellings)
    # A template that looks into its messages may take the disguise for something else.
    if rendering.text != plain.text:
        raise ControlTokenError(
            f"the chat template treats the text {spellings[0]!r} of a message in a way of its own, "
            "so that it can't be told from the token of that name; take it out of the message"
        )
    return rendering


def _disguised(value: Any, pattern: re.Pattern[str], spellings: list[str]) -> Any:
    """Return a value with each control token in its strings as one private-use character."""

    def hide(match: re.Match[str]) -> str:
        if match.group() not in spellings:
            spellings.append(match.group())
        return chr(_TYPED + spellings.index(match.group()))

    if isinstance(value, str):
        return pattern.sub(hide, value)
    if isinstance(value, Mapping):
        return {
            _disguised(key, pattern, spellings): _disguised(entry, pattern, spellings)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_disguised(entry, pattern, spellings) for entry in value]
    return value


def _undisguised(hidden: RenderedText, spellings: list[str]) -> Rendering:
    pieces: list[str] = []
    places = [0]
    typed: list[Span] = []
    for character in hidden.text:
        number, at = ord(character) - _TYPED, places[-1]
        spells = 0 <= number < len(spellings)
        pieces.append(spellings[number] if spells else character)
        places.append(at + len(pieces[-1]))
        if spells:
            typed.append((at, places[-1]))
    marks = [(places[start], places[end]) for start, end in hidden.marks]
    return Rendering("".join(pieces), marks, typed)


def encode_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, typed: Sequence[Span] = ()
) -> list[int]:
    """Return the ids of a text, nothing added around it; what is `typed` is taken as text.

    Raises:
        ControlTokenError: the tokenizer can't take it as text.
    """
    if typed:
        return encode(tokenizer, text, typed).ids
    return list(_encoded(tokenizer, text)["input_ids"])


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> Any:
    try:
        return tokenizer(text, add_special_tokens=False, verbose=False, **options)
    except Exception as error:  # the library's own have no other class
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} can't take the text "
            f"{text[:40]!r}: {in_words(error)}; restore its tokenizer.json or take another one"
        ) from error


def encode(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    typed: Sequence[Span] = (),
    cuts: Sequence[int] = (),
) -> Encoded:
    """Return the ids of a text with the characters they stand for, nothing added around it.

    Args:
        tokenizer: a fast tokenizer of transformers.
        text: what is encoded.
        typed: control tokens in it that are taken as text.
        cuts: characters before which no token may begin and behind which none may end.

    Raises:
        ModelError: the tokenizer is not a fast one.
        ControlTokenError: it can't take them as text.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no tokenizer.json, so that it can't "
            "tell which characters a token stands for; convert it to a fast tokenizer"
        )
    if typed or cuts:
        return _encode_guarded(tokenizer, text, typed, cuts)
    out = _encoded(tokenizer, text, return_offsets_mapping=True)
    return Encoded(list(out["input_ids"]), [(int(a), int(b)) for a, b in out["offset_mapping"]])


def _encode_guarded(
    tokenizer: PreTrainedTokenizerBase, text: str, typed: Sequence[Span], cuts: Sequence[int]
) -> Encoded:
    """Encode with the live control tokens under other names, and all of the known names as text."""
    guard = _guard(tokenizer)
    _require_free(text, _LIVE, len(guard.names) + 1)
    backend = _backend(tokenizer, guard)
    marked, starts, ends = _marked(guard, text, typed, cuts)
    out = backend.encode(marked, add_special_tokens=False)
    first = backend.token_to_id(chr(_LIVE))
    inside = sorted({*cuts, *(start + 1 for start, _ in typed)})
    ids, offsets = [], []
    words = [text[a:b] for a, b in typed]
    spelled_ids = {
        number
        for name, number in zip(guard.names, guard.ids, strict=True)
        if number != tokenizer.unk_token_id and any(name in word for word in words)
    }
    for number, (begin, end) in zip(out.ids, out.offsets, strict=True):
        if number in spelled_ids and inside != list(cuts):
            # A vocabulary may hold them as words of their own; cut within, they are none.
            return _encode_guarded(tokenizer, text, typed, inside)
        if number in spelled_ids:
            raise ControlTokenError(
                f"the tokenizer makes the token {tokenizer.convert_ids_to_tokens(number)!r} of "
                "text that spells it; take it out of the text"
            )
        if number == first + len(guard.names):  # a cut
            continue
        ids.append(guard.ids[number - first] if number >= first else number)
        offsets.append(
            (starts[begin], ends[end - 1]) if begin < end else (starts[begin], starts[begin])
        )
    return Encoded(ids, offsets)


def _marked(
    guard: _Guard, text: str, typed: Sequence[Span], cuts: Sequence[int]
) -> tuple[str, list[int], list[int]]:
    """Return a text with live control tokens as one character, and what each character was."""
    names = _pattern(set(guard.names))
    pieces: list[tuple[str, int, int]] = []
    edges = sorted({0, len(text), *cuts, *(place for span in typed for place in span)})
    for start, end in pairwise(edges):
        if start in cuts:
            pieces.append((chr(_LIVE + len(guard.names)), start, start))
        at = start
        if not any(a <= start and end <= b for a, b in typed):
            for match in names.finditer(text, start, end):
                pieces += [(text[i], i, i + 1) for i in range(at, match.start())]
                pieces.append((chr(_LIVE + guard.names.index(match.group())), *match.span()))
                at = match.end()
        pieces += [(text[i], i, i + 1) for i in range(at, end)]
    starts = [start for _, start, _ in pieces] + [len(text)]
    return "".join(c for c, _, _ in pieces), starts, [end for _, _, end in pieces]


def _backend(tokenizer: PreTrainedTokenizerBase, guard: _Guard) -> Any:
    """Return a copy of the tokenizer to which control tokens are text, and their marks tokens."""
    from tokenizers import AddedToken

    if guard.backend is not None:
        return guard.backend
    backend = copy.deepcopy(tokenizer.backend_tokenizer)  # the user's own stays as it is
    backend.no_truncation()
    backend.no_padding()
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in guard.names]
    )
    marks = []
    for number, name in enumerate(guard.names):
        like = added.get(name)
        marks.append(
            AddedToken(
                chr(_LIVE + number),
                special=False,
                normalized=False,
                lstrip=bool(like and like.lstrip),
                rstrip=bool(like and like.rstrip),
            )
        )
    backend.add_tokens(
        [*marks, AddedToken(chr(_LIVE + len(marks)), special=False, normalized=False)]
    )
    backend.encode_special_tokens = True
    guard.backend = backend
    return backend


def opening_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, typed: Sequence[Span] = ()
) -> list[int]:
    """Return the ids of the end of a prompt; short ones, which are the template's, are kept."""
    known = _guard(tokenizer).openings
    if typed or len(text) > _SHORT or len(known) > _SHORT:
        return encode_ids(tokenizer, text, typed)
    if text not in known:
        known[text] = encode_ids(tokenizer, text)
    return known[text]


def _require_free(text: str, first: int, count: int) -> None:
    if any(first <= ord(character) < first + count for character in text):
        raise ControlTokenError(
            "a text spells control tokens and holds private-use characters from "
            f"U+{first:X} on, by which they are told apart; take either out of it"
        )


def _guard(tokenizer: PreTrainedTokenizerBase) -> _Guard:
    template = str(getattr(tokenizer, "chat_template", None))
    signature = (len(tokenizer), tokenizer.eos_token, tokenizer.bos_token, template)
    guard = _guards.get(tokenizer)
    if guard is None or guard.signature != signature:
        guard = _guards[tokenizer] = _made(tokenizer, signature)
    return guard


def _made(tokenizer: PreTrainedTokenizerBase, signature: tuple[Any, ...]) -> _Guard:
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    special.discard("")
    others = {
        token.content for token in added if token.content.strip() and token.content not in special
    }
    closing, opening = _frames(tokenizer) if others else ("", "")
    own = _known(tokenizer, special | {name for name in others if name in closing})
    given = own | {name for name in others if name in opening}
    names = sorted(given, key=lambda name: (-len(name), name))
    return _Guard(
        signature=signature,
        names=names,
        ids=[int(tokenizer.convert_tokens_to_ids(name)) for name in names],
        own=_pattern(own),
        given=_pattern(given),
    )


def _known(tokenizer: PreTrainedTokenizerBase, names: set[str]) -> set[str]:
    """Return the names that are tokens of the vocabulary."""
    unknown = {None, tokenizer.unk_token_id}
    return {
        name
        for name in names
        if name == tokenizer.unk_token or tokenizer.convert_tokens_to_ids(name) not in unknown
    }


def _pattern(names: set[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _frames(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the template writes from an answer to the next question, and before answers."""
    if not has_template(tokenizer):
        return "", ""
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": probe} for role, probe in zip(roles, _PROBES, strict=True)]
    try:
        text = apply_template(tokenizer, turns, answer_next=True).text
    except ModelError:
        return "", ""
    pieces = re.split("|".join(_PROBES), text)
    return (pieces[2], pieces[1] + pieces[3]) if len(pieces) == 4 else ("", "")
