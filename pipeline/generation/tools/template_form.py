"""Calls of tools as a checkpoint's own chat template writes them.

A trial conversation with a call and its result tells the form: what stands before a call, which
keys of its JSON hold name and arguments, where its turn ends. So no list of models is needed:

    <tool_call>{"name": "calculator", "arguments": {...}}</tool_call>         Hermes, Qwen
    {"name": "calculator", "parameters": {...}}                               Llama 3.1
    [TOOL_CALLS] [{"name": "calculator", "arguments": {...}, "id": ...}]      Mistral
    [TOOL_CALLS]calculator[ARGS]{...}                                         Mistral, later

Calls are executed when the model has ended its turn; one in a thought (`<think>...</think>`) is
text, as vLLM's and TRL's readers have it. What the template then writes up to the assistant's next
turn, the results in it, is put behind as tokens, encoded from the token that ends the turn on: the
tokens before stay those that the model drew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import ModelError, UsageError, in_words
from data.records import Message, Prompt
from data.text.control_tokens import Rendering, control_spans, encode_ids, render
from pipeline.generation.tools.calls import Asked, Call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAME, _KEY, _VALUE, _RESULT = "zebra_stripes", "quagga", "Okapi7", "Bongo9"
_THOUGHT, _THOUGHT_KEYS = "Kudu5", ("reasoning_content", "thinking")
_SCHEMA = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Count stripes.",
        "parameters": {
            "type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]
        },
    },
}  # fmt: skip
_WAY_OUT = "set `form: inline` of its tools, or use another checkpoint"


class _Shape(NamedTuple):
    """How a template writes a call.

    Attributes:
        opening: before the call, white space apart; empty where a turn that is JSON is a call.
        between: between a name that stands before the JSON of its arguments and this; None where
            the JSON holds both.
        inside: keys that lead to the object which holds both.
        name: key of the name.
        arguments: key of the arguments.
        start: characters of the trial before the assistant's turn.
        end: the token that ends the turn.
        several: whether a turn may hold several calls.
        thought: what stands before and behind what the model thinks, such as `<think>` and
            `</think>`; empty where the template writes no thoughts.
        thinks: whether the template begins to think for the model.
    """

    opening: str
    between: str | None
    inside: tuple[str, ...]
    name: str
    arguments: str
    start: int
    end: str
    several: bool
    thought: tuple[str, str] = ("", "")
    thinks: bool = False


def tell_tools(prompt: Prompt, schemas: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return a prompt whose template is given tools beside it.

    Raises:
        UsageError: it is plain text, which no template renders.
    """
    if isinstance(prompt, str):
        raise UsageError(
            f"{prompt!r:.40} is plain text, and the chat template tells of tools with "
            "`form: template`; set `form: inline` of its tools, or give it chats"
        )
    first: Message = {**prompt[0], "tools": [*prompt[0].get("tools", []), *map(dict, schemas)]}
    return [first, *prompt[1:]]


class TemplateForm:
    """Calls in the form of a tokenizer's chat template.

    Args:
        tokenizer: carries the template.
        schemas: of the tools, as templates take them.

    Raises:
        ModelError: there is no template, or none that writes calls which can be read.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, schemas: Sequence[Mapping[str, Any]]
    ) -> None:
        self.tokenizer, self.schemas = tokenizer, schemas
        self.shape = _shape(tokenizer)

    def told(self, prompt: Prompt) -> Prompt:
        """Return a prompt as it tells of the tools."""
        return tell_tools(prompt, self.schemas)

    def asked(self, ids: Sequence[int], begin: int, *, ended: bool) -> list[Asked]:
        """Return the calls of a turn that has ended."""
        if not ended:
            return []
        shape, decode = self.shape, self.tokenizer.decode
        # Without an opening a call is all of a turn, but for tokens that announce it.
        text = str(decode(list(ids[begin:]), skip_special_tokens=not shape.opening))
        if not shape.opening:
            return _read(text, 0, shape)[0] if _begins_call(text, shape) else []
        text = _said(text, shape)
        found, at = list[Asked](), text.find(shape.opening)
        while at >= 0:
            calls, at = _read(text, at + len(shape.opening), shape)
            found, at = found + calls, text.find(shape.opening, at)
        return found if shape.several else found[:1]

    def clean(self, result: str) -> str:
        """Return a result as it is: the template has a place for any text."""
        return result

    def answer(self, calls: Sequence[Call]) -> list[int]:
        """Return the tokens from behind the calls' turn to the beginning of the next one."""
        known = [str(schema["function"]["name"]) for schema in self.schemas]
        names = [call.name if call.name in known else known[0] for call in calls]
        rendering = _rendered(self.tokenizer, names, [call.result for call in calls])
        return _behind(self.tokenizer, rendering, self.shape.start, self.shape.end)

    def text(self, calls: Sequence[Call]) -> str:
        """Return what stands for these tokens where a response is read as text."""
        return "\n".join(call.result for call in calls)


def _said(text: str, shape: _Shape) -> str:
    """Return what follows the thoughts of a turn; nothing where they do not end."""
    opens, closes = shape.thought
    if not closes:
        return text
    _, ended, said = text.rpartition(closes)
    return said if ended or not (shape.thinks or opens in text) else ""


def _begins_call(text: str, shape: _Shape) -> bool:
    return text.lstrip().startswith(("{", "[")) and json.dumps(shape.name) in text


def _read(text: str, at: int, shape: _Shape) -> tuple[list[Asked], int]:
    """Return the calls that begin at a place behind an opening, and where they end."""
    opens = "{[" if shape.between is None else "{"
    start = next((place for place in range(at, len(text)) if text[place] in opens), len(text))
    head = text[at:start].strip()
    try:
        if head and shape.between is None:
            raise ValueError("it begins otherwise")
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return [Asked("", {}, f"the call is no JSON: {in_words(error)}")], at
    if shape.between is not None:
        name = head.partition(shape.between)[0] if shape.between else head
        return [_asked(name.strip(), value)], end
    return [_held(item, shape) for item in (value if isinstance(value, list) else [value])], end


def _held(item: Any, shape: _Shape) -> Asked:
    """Return the call that an object of JSON tells."""
    for key in shape.inside:
        item = item.get(key) if isinstance(item, dict) else None
    held = item if isinstance(item, dict) else {}
    return _asked(held.get(shape.name), held.get(shape.arguments, {}))


def _asked(name: Any, arguments: Any) -> Asked:
    """Return a call; arguments may be JSON within JSON."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return Asked(str(name), {}, "the arguments are no JSON")
    if not isinstance(name, str):
        return Asked("", {}, "the call has no name of a tool")
    if not isinstance(arguments, dict):
        return Asked(name, {}, "the arguments are no object of names and values")
    return Asked(name, arguments)


def _shape(tokenizer: PreTrainedTokenizerBase) -> _Shape:
    """Return how a template writes calls, from a trial."""
    try:
        asking: list[Any] = [{"role": "user", "content": "Count.", "tools": [_SCHEMA]}]
        prompt = render(tokenizer, asking, answer_next=True).text
        whole = _rendered(tokenizer, [_NAME], [_RESULT])
        bare = _rendered(tokenizer, [_NAME], [])
        start = _turn_start(tokenizer, prompt, whole)
        result = whole.text.find(_RESULT, start)
        if result < 0 or _NAME not in prompt:
            raise ModelError("it shows no tools, or not what they give")
        shape = _found(whole.text[start:result])
        end = _end(tokenizer, bare)
        _behind(tokenizer, whole, start, end)
    except ModelError as error:
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        raise ModelError(
            f"the chat template of {name} is of no use for calls of tools: {error}; {_WAY_OUT}"
        ) from error
    try:
        _rendered(tokenizer, [_NAME] * 2, [_RESULT] * 2)
        several = True
    except ModelError:
        several = False
    thought = _thought(tokenizer, start, shape.opening)
    thinks = bool(thought[0]) and prompt.rstrip().endswith(thought[0])
    return shape._replace(start=start, end=end, several=several, thought=thought, thinks=thinks)


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    results: Sequence[str],
    **turn: str,
) -> Rendering:
    """Render the trial with calls of these tools in a turn, and their results."""
    ids = [f"call{number:05}" for number in range(len(names))]  # nine letters and digits
    arguments = {_KEY: _VALUE}
    calls = [
        {"id": one, "type": "function", "function": {"name": name, "arguments": arguments}}
        for one, name in zip(ids, names, strict=True)
    ]
    given = [
        {"role": "tool", "content": result, "name": name, "tool_call_id": one}
        for one, name, result in zip(ids, names, results, strict=False)
    ]
    user = {"role": "user", "content": "Count.", "tools": [_SCHEMA]}
    called = {"role": "assistant", "content": "", "tool_calls": calls, **turn}
    return render(tokenizer, [user, called, *given], answer_next=bool(results))


def _thought(tokenizer: PreTrainedTokenizerBase, start: int, opening: str) -> tuple[str, str]:
    """Return what a template writes before and behind the thoughts of a turn with a call."""
    for key in _THOUGHT_KEYS if opening else ():
        text = _rendered(tokenizer, [_NAME], [], **{key: _THOUGHT}).text[start:]
        before, thought, behind = text.partition(_THOUGHT)
        closes = behind.partition(opening)[0].strip()
        if thought and before.strip() and closes:
            return before.strip(), closes
    return "", ""


def _turn_start(tokenizer: PreTrainedTokenizerBase, prompt: str, whole: Rendering) -> int:
    """Return where the assistant's turn begins: behind what sampling and the trial begin with."""
    pairs = enumerate(zip(prompt, whole.text, strict=False))
    start = next((at for at, (a, b) in pairs if a != b), min(len(prompt), len(whole.text)))
    if start == len(prompt):
        return start
    # A template that begins to think for the model writes more; the turn begins before that.
    ends = [end for _, end in control_spans(tokenizer, whole) if end <= start]
    return max([whole.text.rfind("\n", 0, start) + 1, *ends[-1:]])


def _found(called: str) -> _Shape:
    """Return the form of the trial's call, from the text of its turn."""
    decoder, arguments = json.JSONDecoder(), {_KEY: _VALUE}
    for at, sign in enumerate(called):
        if sign not in "{[":
            continue
        try:
            value, end = decoder.raw_decode(called, at)
        except ValueError:
            continue
        if _VALUE not in called[at:end]:
            continue
        if value == arguments and _NAME in called[:at]:
            name = called.rindex(_NAME, 0, at)
            between = called[name + len(_NAME) : at].strip()
            return _Shape(called[:name].strip(), between, (), "", "", 0, "", False)
        held, inside = value[0] if isinstance(value, list) else value, list[str]()
        while isinstance(held, dict) and _NAME not in held.values():
            key = next((key for key, one in held.items() if isinstance(one, dict)), None)
            held = held[key] if key is not None else None
            inside += [] if key is None else [key]
        keys = {json.dumps(one): key for key, one in held.items()} if isinstance(held, dict) else {}
        spelled = json.dumps(arguments), json.dumps(json.dumps(arguments))
        given = next((keys[one] for one in spelled if one in keys), None)
        if given is not None:
            name_key = keys[json.dumps(_NAME)]
            return _Shape(called[:at].strip(), None, tuple(inside), name_key, given, 0, "", False)
    raise ModelError("it writes them in no JSON of a name and arguments")


def _end(tokenizer: PreTrainedTokenizerBase, bare: Rendering) -> str:
    """Return the token that ends a turn of calls."""
    called = bare.text.rindex(_VALUE)
    ends = [span for span in control_spans(tokenizer, bare) if span[0] > called]
    if not ends:
        raise ModelError("it ends their turn with no special token")
    return bare.text[slice(*ends[-1])]


def _behind(
    tokenizer: PreTrainedTokenizerBase, rendering: Rendering, start: int, end: str
) -> list[int]:
    """Return the tokens behind the one that ends the turn which begins at `start`."""
    text = rendering.text
    spans = control_spans(tokenizer, rendering)
    first = next((span for span in spans if span[0] >= start and text[slice(*span)] == end), None)
    if first is None:
        raise ModelError(f"{end} ends their turn only where no results follow")
    typed = [(a - first[0], b - first[0]) for a, b in rendering.typed if a >= first[1]]
    ids = encode_ids(tokenizer, text[first[0] :], typed)
    if ids[:1] != [tokenizer.convert_tokens_to_ids(end)]:
        raise ModelError(f"{end}, which ends their turn, is no token of its own")
    return ids[1:]
