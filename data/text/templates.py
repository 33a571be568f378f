"""Applies a tokenizer's chat template to turns, and tells what the template marks.

A tokenizer is any of `transformers`.
"""

from __future__ import annotations

import functools
import os
import re
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from data.errors import ModelError, RlhfError, in_words
from data.records import arguments_as_text, template_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_SECONDS, _BYTES, _LONGEST = 2, 2**29, 2**20
"""What a template may take for a chat of one word: of the CPU, of memory, characters of text."""
_PROBE, _REFUSES = "Zebra", "refuses the turns"

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
    """Return how the assistant's tokens are found: by the template's marks, or turn by turn."""
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
    turns, tools = template_input(messages)
    if tools is not None:
        options.setdefault("tools", tools)
    options["add_generation_prompt"] = answer_next
    require_template(tokenizer, options.get("tools"))
    try:
        try:
            return _applied(tokenizer, turns, options)
        except Exception:
            # Some templates join the arguments of a call as text, most write an object as JSON.
            if not any("tool_calls" in turn for turn in turns):
                raise
            return _applied(tokenizer, [arguments_as_text(turn) for turn in turns], options)
    except RlhfError:
        raise
    except Exception as error:  # a template can raise whatever Python does
        roles = ", ".join(str(turn["role"]) for turn in messages)
        raise ModelError(f"the chat template {_REFUSES} {roles}: {in_words(error)}") from error


def require_template(tokenizer: PreTrainedTokenizerBase, tools: Any = None) -> None:
    """Try a template once, before it is used, on a chat of one word.

    Raises:
        ModelError: it takes too long or too much memory, leaves out what is said, or refuses it.
    """
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    problem = _trial(template_of(tokenizer, tools), tuple(special.items()))
    # A template for chats with tools may need them.
    if problem is not None and (tools is None or not problem.startswith(_REFUSES)):
        raise ModelError(
            f"the chat template {problem}; set `chat_template` in a tokenizer stage that adopts "
            f"{getattr(tokenizer, 'name_or_path', '') or 'this tokenizer'}, or use another one"
        )


@functools.lru_cache(maxsize=64)
def _trial(template: str, special: tuple[tuple[str, str], ...]) -> str | None:
    """Tell why a template can't be used for a chat of one word; None where it can."""
    from transformers.utils.chat_template_utils import render_jinja_template

    user = {"role": "user", "content": _PROBE}

    def render(*turns: dict[str, str]) -> str:
        options = {**dict(special), "add_generation_prompt": True}
        texts, _ = render_jinja_template(
            conversations=[list(turns)], chat_template=template, **options
        )
        return str(texts[0])

    def problem() -> bytes:
        try:
            text = render(user)
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever Python does
            try:
                text = render({"role": "system", "content": "Be brief."}, user)
            except Exception:
                return f"{_REFUSES} user: {in_words(error)}".encode()
        if len(text) > _LONGEST:
            return f"makes {len(text):,} characters of a chat of one word".encode()
        shown = _PROBE.casefold() in text.casefold()
        return b"" if shown else b"shows nothing of what a user says"

    answer = _bounded(problem, seconds=_SECONDS, more_bytes=_BYTES)
    if answer is None:
        return f"takes more than {_SECONDS} seconds or {_BYTES >> 20} MiB for a chat of one word"
    return answer.decode() or None


def _bounded(compute: Callable[[], bytes], *, seconds: int, more_bytes: int) -> bytes | None:
    """Compute in a copy of this process that ends at its limits.

    A loop in a template can be stopped from Python, one product of a text and a number can't.

    Args:
        compute: gives what is returned, at most some kilobytes.
        seconds: of the CPU.
        more_bytes: of memory, on top of what this process has.

    Returns:
        None where it came to a limit, or raised.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            room = pages * resource.getpagesize() + more_bytes
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            os.write(writable, compute())
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        written = pipe.read()
    _, status = os.waitpid(child, 0)
    return written if os.waitstatus_to_exitcode(status) == 0 else None


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
