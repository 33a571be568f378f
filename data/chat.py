"""Turns prompts and conversations into token ids through a tokenizer's chat template.

Which tokens are the assistant's comes from the template's `{% generation %}` marks; a template
without them is rendered turn by turn, and what a turn adds after the opening of the assistant's
is taken as the assistant's (`mask_method` says which way is used). A tokenizer is any of
`transformers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from data.errors import ModelError, RecipeError
from data.records import Completion, Conversation, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

_PROBE = "a"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Rendered(NamedTuple):
    """Token ids, and for each whether it is the assistant's (True: learn it)."""

    ids: list[int]
    assistant_mask: list[bool]


def mask_method(tokenizer: PreTrainedTokenizerBase) -> Literal["marks", "turns"]:
    """Return how the assistant's tokens are found: by the template's marks, or turn by turn."""
    return "marks" if _GENERATION.search(_template(tokenizer)) else "turns"


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer can render a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not has_template(tokenizer):
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        raise ModelError(
            f"{name} has no chat template, so it can't render messages; set one (an instruct model "
            "carries its own) or use plain prompts"
        )
    return str(tokenizer.get_chat_template())


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> Any:
    """Apply the chat template; what it refuses is told with its own words."""
    import jinja2

    _template(tokenizer)
    try:
        return tokenizer.apply_chat_template([dict(turn) for turn in messages], **options)
    except jinja2.TemplateError as error:
        roles = ", ".join(turn["role"] for turn in messages)
        raise ModelError(f"the chat template refuses the turns {roles}: {error}") from error


def render_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer_next: bool
) -> str:
    """Return a chat as the template's text.

    Args:
        tokenizer: carries the template.
        messages: the turns.
        answer_next: whether the assistant's next turn is opened at the end.
    """
    text = _render(tokenizer, messages, tokenize=False, add_generation_prompt=answer_next)
    return str(text)


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the ids after which a response is sampled.

    A chat goes through the template and ends with the opening of the assistant's turn. Plain text
    is tokenised as it is, behind what the tokenizer puts in front of a text, once; what it puts
    behind a text would end what is to be continued, and is left out. Never empty: an empty text
    becomes the first token of a sequence.

    Raises:
        ModelError: a chat, and the tokenizer has no template.
    """
    if not isinstance(prompt, str):
        text = render_text(tokenizer, prompt, answer_next=True)
        return _ids(tokenizer, text)
    ids, front = _ids(tokenizer, prompt), front_ids(tokenizer)
    if ids[: len(front)] != front:  # it may be typed in the text
        ids = front + ids
    if not ids:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else _eos(tokenizer)
        return [first]
    return ids


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> Rendered:
    """Return a conversation's ids and which of them are the assistant's.

    Raises:
        ModelError: there is no template, or it has no marks and does not render turn by turn.
    """
    if mask_method(tokenizer) == "marks":
        out = _render(
            tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return Rendered(list(out["input_ids"]), [bool(mark) for mark in out["assistant_masks"]])
    return _render_by_turns(tokenizer, messages)


def _render_by_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Rendered:
    """Find the assistant's characters by rendering the chat up to and with each of its turns."""
    whole = render_text(tokenizer, messages, answer_next=False)
    spans: list[tuple[int, int]] = []
    for index, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before = render_text(tokenizer, messages[:index], answer_next=True)
        after = render_text(tokenizer, messages[: index + 1], answer_next=False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ModelError(
                f"the chat template has no {{% generation %}} marks and changes earlier turns "
                f"(turn {index + 1} of {len(messages)}), so the assistant's tokens can't be told; "
                "mark them in the template"
            )
        spans.append((len(before), _end_of_turn(tokenizer, after, len(before))))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    mask = [
        any(start <= first and last <= end for start, end in spans) and first < last
        for first, last in encoded["offset_mapping"]
    ]
    return Rendered(list(encoded["input_ids"]), mask)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, text: str, start: int) -> int:
    """Return where a turn ends: after its end-of-sequence token, without the line break behind."""
    eos = tokenizer.eos_token
    place = text.rfind(eos, start) if isinstance(eos, str) and eos else -1
    return len(text) if place < 0 else place + len(eos)


def render_completion(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Rendered:
    """Return a plain prompt and its completion as ids; the completion and eos are marked."""
    opening = render_prompt(tokenizer, prompt)
    answer = [*_ids(tokenizer, completion), _eos(tokenizer)]
    return Rendered([*opening, *answer], [False] * len(opening) + [True] * len(answer))


def render_demonstration(
    tokenizer: PreTrainedTokenizerBase, record: Conversation | Completion
) -> Rendered:
    """Return what is to be imitated as ids and mask."""
    if isinstance(record, Completion):
        return render_completion(tokenizer, record.prompt, record.completion)
    return render_conversation(tokenizer, record.messages)


@dataclass
class RenderReport:
    """What became of demonstrations on the way to token ids."""

    rendered: int = 0
    """Demonstrations handed out."""
    truncated: int = 0
    """Those of them that were cut at the end."""
    dropped: int = 0
    """Those too long, or without a token of the assistant once cut."""
    tokens: int = 0
    """Tokens handed out."""
    tokens_cut: int = 0
    """Tokens cut off, dropped demonstrations among them."""

    def lines(self) -> list[str]:
        """Return the report as lines for the console and the log."""
        told = [f"{self.rendered:,} demonstrations, {self.tokens:,} tokens"]
        if self.truncated or self.dropped:
            told.append(
                f"too long: {self.truncated:,} cut, {self.dropped:,} dropped, "
                f"{self.tokens_cut:,} tokens in all"
            )
        return told


def render_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    records: Iterable[Conversation | Completion],
    *,
    max_length: int,
    too_long: Literal["cut", "drop"] = "cut",
    report: RenderReport,
) -> Iterator[Rendered]:
    """Yield demonstrations of at most `max_length` tokens; what is cut or dropped is counted.

    Raises:
        RecipeError: `max_length` leaves no room for a token.
    """
    if max_length < 2:
        raise RecipeError(f"max_length {max_length} leaves no room for prompt and answer")
    for record in records:
        ids, mask = render_demonstration(tokenizer, record)
        over = max(0, len(ids) - max_length)
        kept = Rendered(ids[:max_length], mask[:max_length])
        if not any(kept.assistant_mask) or (over and too_long == "drop"):
            report.dropped += 1
            report.tokens_cut += len(ids)
            continue
        report.rendered += 1
        report.truncated += over > 0
        report.tokens += len(kept.ids)
        report.tokens_cut += over
        yield kept


def front_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts in front of every text, such as bos."""
    body = _ids(tokenizer, _PROBE)
    framed = list(tokenizer(_PROBE, verbose=False)["input_ids"])
    starts = [at for at in range(len(framed)) if framed[at : at + len(body)] == body]
    return framed[: starts[0]] if body and starts else []


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{tokenizer.name_or_path} has no end-of-sequence token")
    return int(tokenizer.eos_token_id)
