"""Applies a tokenizer's chat template to turns, and tells what the template marks.

A tokenizer is any of `transformers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from data.errors import ModelError
from data.records import arguments_as_text, template_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""Characters of a text, from the first to the one behind the last."""


class RenderedText(NamedTuple):
    """A chat as text, and what the template marks as the assistant's."""

    text: str
    marks: list[Span]


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer can render a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def mask_method(tokenizer: PreTrainedTokenizerBase, tools: Any = None) -> Literal["marks", "turns"]:
    """Return how the assistant's tokens are found: by the template's marks, or turn by turn.

    Args:
        tokenizer: carries the template, or one beside it for chats with tools.
        tools: of the chat.
    """
    return "marks" if _GENERATION.search(template_of(tokenizer, tools)) else "turns"


def template_of(tokenizer: PreTrainedTokenizerBase, tools: Any = None) -> str:
    """Return the chat template.

    Raises:
        ModelError: there is none.
    """
    if not has_template(tokenizer):
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        raise ModelError(
            f"{name} has no chat template, so it can't render messages; set one (an instruct model "
            "carries its own) or use plain prompts"
        )
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError as error:
        raise ModelError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has chat templates named "
            f"{', '.join(tokenizer.chat_template)} and none named default; set `chat_template` in "
            "a tokenizer stage that adopts it"
        ) from error


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    answer_next: bool,
    **options: Any,
) -> RenderedText:
    """Apply the chat template; what it refuses is told with its own words.

    Args:
        tokenizer: carries the template.
        messages: the turns; the first may hold the tools of the chat.
        answer_next: whether the assistant's next turn is opened at the end.
        options: what else the template takes, such as `tools`.

    Raises:
        ModelError: there is no template, or it refuses the turns.
    """
    import jinja2

    turns, tools = template_input(messages)
    if tools is not None:
        options.setdefault("tools", tools)
    options["add_generation_prompt"] = answer_next
    try:
        try:
            return _applied(tokenizer, turns, options)
        except (jinja2.TemplateError, TypeError):
            # Some templates join the arguments of a call as text, most write an object as JSON.
            if not any("tool_calls" in turn for turn in turns):
                raise
            return _applied(tokenizer, [arguments_as_text(turn) for turn in turns], options)
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(turn["role"] for turn in messages)
        raise ModelError(f"the chat template refuses the turns {roles}: {error}") from error


def _applied(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], options: dict[str, Any]
) -> RenderedText:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = template_of(tokenizer, options.get("tools"))
    if options["add_generation_prompt"] or not _GENERATION.search(template):
        text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
        return RenderedText(str(text), [])
    texts, marks = render_jinja_template(
        conversations=[[{k: v for k, v in turn.items() if v is not None} for turn in turns]],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **options},
    )
    return RenderedText(str(texts[0]), [(int(start), int(end)) for start, end in marks[0]])
