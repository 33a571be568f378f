"""Turns prompts and conversations into token ids through a tokenizer's chat template.

Which tokens of a conversation are learned is found in `data.text.answers`; which of them are the
template's own, and which a text only spells, in `data.text.control_tokens`. A tokenizer is any of
`transformers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple

from data.errors import ControlTokenError, ModelError, RecipeError
from data.records import Completion, Conversation, Message, Prompt
from data.text.answers import AnswerNotes, Split, answer_mask
from data.text.continuation import continuation_ids
from data.text.control_tokens import encode_ids, render, spelled, turn_spells
from data.text.left_out import NEEDED, TRIED, left_out
from data.text.templates import apply_template, has_template, mask_method
from data.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_TEMPLATE",
    "LINES_TEMPLATE",
    "RenderReport",
    "Rendered",
    "front_ids",
    "has_template",
    "mask_method",
    "render_completion",
    "render_conversation",
    "render_demonstration",
    "render_demonstrations",
    "render_input",
    "render_pairs",
    "render_prompt",
    "render_text",
    "require_shown",
    "response_ids",
    "spelled_line",
    "spells_control_tokens",
]

DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""One turn is `<|user|>text<|end|>`; the assistant's text and its `<|end|>` are marked."""

LINES_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- message['role'] | capitalize + ':\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] -}}{%- endif -%}"
    "{{- '\n\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}"
)
"""For models that have no tokens for turns: `User:`, a line break, text; the end is their eos."""

_PROBE = "a"


class Rendered(NamedTuple):
    """Token ids, and for each whether it is the assistant's (True: learn it)."""

    ids: list[int]
    assistant_mask: list[bool]


def render_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer_next: bool
) -> str:
    """Return a chat as the template's text; `answer_next` opens the assistant's next turn."""
    return apply_template(tokenizer, messages, answer_next=answer_next).text


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the ids after which a response is sampled.

    A chat goes through the template and ends with the opening of the assistant's turn. Plain text
    is tokenised as it is, behind what the tokenizer puts in front of a text, once; what it puts
    behind a text would end what is to be continued, and is left out. Never empty: an empty text
    becomes the first token of a sequence.

    Control tokens that the text of a message or a plain prompt spells stay text; at the very start
    of a plain prompt they are what the tokenizer puts in front.

    Raises:
        ModelError: a chat, and the tokenizer has no template, or one that leaves out its calls.
        ControlTokenError: the text spells a control token that can't be kept as text.
    """
    if not isinstance(prompt, str):
        _require_shown_prompt(tokenizer, prompt)
        rendering = render(tokenizer, prompt, answer_next=True)
        return encode_ids(tokenizer, rendering.text, rendering.typed)
    front = front_ids(tokenizer)
    ids = encode_ids(tokenizer, prompt, _spelled_in_plain(tokenizer, prompt))
    if ids[: len(front)] != front:  # it may be typed in the text
        ids = front + ids
    if not ids:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else _eos(tokenizer)
        return [first]
    return ids


def _spelled_in_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Return the control tokens that a plain prompt spells, behind what belongs in front of it."""
    typed = spelled(tokenizer, text)
    if not typed:
        return []
    usual = "".join(tokenizer.convert_ids_to_tokens(front_ids(tokenizer)))
    known = [name for name in (usual, tokenizer.bos_token) if name and text.startswith(name)]
    opening = max(map(len, known), default=0)
    return [span for span in typed if span[0] >= opening]


def render_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    notes: AnswerNotes | None = None,
    split: Split | None = None,
) -> Rendered:
    """Return a conversation's ids and which of them are the assistant's.

    Answers that can't be learned are left out and noted, and so is what `split` tells that a tool
    put there, see `data.text.answers`.

    Raises:
        ModelError: there is no template, it refuses the turns, or no answer can be learned.
        ControlTokenError: a turn spells a control token that can't be kept as text.
    """
    counted_notes = AnswerNotes() if notes is None else notes
    rendered = Rendered(*answer_mask(tokenizer, messages, counted_notes, split))
    if notes is None and not any(rendered.assistant_mask):
        raise ModelError("; ".join(counted_notes.lines()) or "the conversation holds no answer")
    return rendered


def response_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, behind: str = "") -> list[int]:
    """Return the ids of a response's text, `behind` a plain prompt or "" in a chat.

    Control tokens that it spells stay text, or a `ControlTokenError` tells that they can't.
    """

    def encoded(part: str) -> list[int]:
        return encode_ids(tokenizer, part, spelled(tokenizer, part, own=True))

    return continuation_ids(encoded, behind, text)


def render_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, split: Split | None = None
) -> Rendered:
    """Return a plain prompt and its completion as ids; the completion and eos are marked.

    A completion that spells eos at its very end has ended: it gets no second one. What `split`
    tells that a tool put there is not marked, and encoded by itself, as sampling does.
    """
    ids, eos = render_prompt(tokenizer, prompt), _eos(tokenizer)
    mask, behind, text = [False] * len(ids), prompt, _unended(tokenizer, completion)
    for piece, own in [(text, True)] if split is None else split(text):
        written = response_ids(tokenizer, piece, behind=behind)
        ids, mask, behind = ids + written, mask + [own] * len(written), piece
    return Rendered([*ids, eos], [*mask, True])


def _unended(tokenizer: PreTrainedTokenizerBase, completion: str) -> str:
    while (words := completion.rstrip()).endswith(name := str(tokenizer.eos_token)):
        completion = words.removesuffix(name)
    return completion


def render_input(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the ids that an encoder reads of a prompt: `render_prompt`'s, framed as any text is.

    What the tokenizer puts behind a text ends it here, too, as in pretraining.
    """
    return _framed(tokenizer, render_prompt(tokenizer, prompt))


def render_pairs(
    tokenizer: PreTrainedTokenizerBase,
    record: Conversation | Completion,
    notes: AnswerNotes | None = None,
) -> list[Rendered]:
    """Return what an encoder-decoder imitates: ids to read, and behind them, marked, ids to write.

    Each answer of a conversation is a row, of all turns before it and the answer with the token
    that ends it. A completion is a text of its own, without white space around it; eos ends it.

    Raises:
        ModelError: as `render_conversation`.
        ControlTokenError: a text spells a control token that can't be kept as text.
    """
    if isinstance(record, Completion):
        answer = _unended(tokenizer, record.completion).strip()
        written = [*response_ids(tokenizer, answer), _eos(tokenizer)]
        return [_pair(render_input(tokenizer, record.prompt), written)]
    ids, mask = render_conversation(tokenizer, record.messages, notes)
    rows, at = [], 0
    for learned, run in groupby(mask):
        begin, at = at, at + len(list(run))
        if learned:
            rows.append(_pair(_framed(tokenizer, ids[:begin]), ids[begin:at]))
    return rows


def _pair(read: list[int], written: list[int]) -> Rendered:
    return Rendered([*read, *written], [False] * len(read) + [True] * len(written))


def _framed(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    front, end = _around(tokenizer)
    return [*([] if ids[: len(front)] == front else front), *ids, *end]


def spells_control_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *responses: str
) -> bool:
    """Tell whether a prompt or responses spell control tokens, which are taken as text."""
    if any(spelled(tokenizer, text, own=True) for text in responses):
        return True
    if isinstance(prompt, str):
        return bool(_spelled_in_plain(tokenizer, prompt))
    return any(turn_spells(tokenizer, turn) for turn in prompt)


def spelled_line(count: int, what: str) -> str:
    """Return the sentence on texts that spell control tokens."""
    return (
        f"{count:,} {what} spell control tokens such as those that end a turn; they stay text "
        "(`typed_control_tokens: tokens` in a tokenizer stage makes them tokens)"
    )


def render_demonstration(
    tokenizer: PreTrainedTokenizerBase,
    record: Conversation | Completion,
    notes: AnswerNotes | None = None,
    split: Split | None = None,
) -> Rendered:
    """Return what is to be imitated as ids and mask."""
    if isinstance(record, Completion):
        return render_completion(tokenizer, record.prompt, record.completion, split)
    return render_conversation(tokenizer, record.messages, notes, split)


@dataclass
class RenderReport:
    """What became of demonstrations on the way to token ids."""

    rendered: int = 0
    """Demonstrations handed out."""
    truncated: int = 0
    """Those of them that were cut at the end."""
    dropped: int = 0
    """Those too long, or without a token of the assistant once cut."""
    unlearnable: int = 0
    """Those of which no answer can be learned, whatever their length."""
    spelling: int = 0
    """Those that spell control tokens, which stay text."""
    tokens: int = 0
    """Tokens handed out."""
    tokens_cut: int = 0
    """Tokens cut off, dropped demonstrations among them."""
    answers: AnswerNotes = field(default_factory=AnswerNotes)
    """Answers that are left out, and why."""
    not_shown: Counter[str] = field(default_factory=Counter)
    """What the chat template shows nothing of, with how many demonstrations hold it."""

    def lines(self) -> list[str]:
        """Return the report as lines for the console and the log."""
        sentences = [f"{counted(self.rendered, 'demonstration')}, {counted(self.tokens, 'token')}"]
        if self.truncated or self.dropped:
            sentences.append(
                f"too long: {self.truncated:,} cut, {self.dropped:,} dropped, "
                f"{counted(self.tokens_cut, 'token')} in all"
            )
        if self.unlearnable:
            sentences.append(
                f"{self.unlearnable:,} dropped: they hold no answer that can be learned"
            )
        if self.spelling:
            sentences.append(spelled_line(self.spelling, "demonstrations"))
        for what, count in self.not_shown.most_common():
            sentences.append(f"the chat template leaves out {what} of {count:,} demonstrations")
        return [*sentences, *self.answers.lines()]


def render_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    records: Iterable[Conversation | Completion],
    *,
    max_length: int,
    too_long: Literal["cut", "drop"] = "cut",
    report: RenderReport,
    pairs: bool = False,
    split: Split | None = None,
) -> Iterator[Rendered]:
    """Yield demonstrations of at most `max_length` tokens; what is cut or dropped is counted.

    Args:
        tokenizer: carries the template.
        records: what is to be imitated.
        max_length: tokens of a row; of pairs, of what is read and of what is written each.
        too_long: whether those that are longer are cut at the end or dropped; of pairs what is
            written is cut alone, one that reads too much is dropped.
        report: counts.
        pairs: as `render_pairs` gives them; of what they write all is learned.
        split: finds what tools put into answers.

    Raises:
        RecipeError: `max_length` leaves no room for a token.
    """
    if max_length < 2:
        raise RecipeError(f"max_length {max_length} leaves no room for prompt and answer")
    for record in records:
        if isinstance(record, Conversation):
            report.not_shown.update(require_shown(tokenizer, record.messages))
        try:
            if pairs:
                rows = render_pairs(tokenizer, record, report.answers)
            else:
                rows = [render_demonstration(tokenizer, record, report.answers, split)]
        except ControlTokenError as error:
            report.answers.left_out[str(error)] += 1
            report.unlearnable += 1
            continue
        report.spelling += _spells(tokenizer, record)
        rows = [row for row in rows if any(row.assistant_mask)]
        report.unlearnable += not rows
        for row in rows:
            fitting = _fitting(row, max_length, too_long, report, pairs)
            if fitting is not None:
                yield fitting


def _fitting(
    row: Rendered, max_length: int, too_long: str, report: RenderReport, pairs: bool
) -> Rendered | None:
    """Return a row, cut where it is too long; None where nothing to learn is left, or it drops."""
    ids, mask = row
    room = max_length
    if pairs and mask.index(True) <= max_length:
        room += mask.index(True)
    # A row whose answer lies behind the cut teaches nothing.
    over = max(0, len(ids) - room)
    row = Rendered(ids[:room], mask[:room])
    if not any(row.assistant_mask) or (over and too_long == "drop"):
        report.dropped += 1
        report.tokens_cut += len(ids)
        return None
    report.rendered += 1
    report.truncated += over > 0
    report.tokens += len(row.ids)
    report.tokens_cut += over
    return row


def require_shown(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tried: Collection[str] = TRIED,
) -> list[str]:
    """Return what the template shows nothing of in a chat that makes sense without it.

    Args:
        tokenizer: carries the template.
        messages: the chat.
        tried: which of `data.text.left_out.TRIED` to look for.

    Raises:
        ModelError: it leaves out calls of tools or what they gave.
    """
    left = left_out(
        messages, lambda turns: render_text(tokenizer, turns, answer_next=False), tried=tried
    )
    missing = [what for what in left if what in NEEDED]
    if missing:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} leaves out "
            f"{' and '.join(missing)}; use a model whose template shows them, or leave out the "
            "rows that hold them"
        )
    return left


def _require_shown_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> None:
    """Refuse a template that shows no tools."""
    if "tools" in require_shown(tokenizer, prompt, tried=(*NEEDED, "tools")):
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} shows no "
            "tools, which prompts hold; use a model whose template does, or leave out the "
            "column `tools`"
        )


def _spells(tokenizer: PreTrainedTokenizerBase, record: Conversation | Completion) -> bool:
    if isinstance(record, Completion):
        return spells_control_tokens(tokenizer, record.prompt, record.completion)
    return spells_control_tokens(tokenizer, record.messages)


def front_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts in front of every text, such as bos."""
    return _around(tokenizer)[0]


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts in front of every text, and behind it."""
    body = encode_ids(tokenizer, _PROBE)
    framed = list(tokenizer(_PROBE, verbose=False)["input_ids"])
    starts = [at for at in range(len(framed)) if framed[at : at + len(body)] == body]
    if not body or not starts:
        return [], []
    return framed[: starts[0]], framed[starts[0] + len(body) :]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{tokenizer.name_or_path} has no end-of-sequence token")
    return int(tokenizer.eos_token_id)
