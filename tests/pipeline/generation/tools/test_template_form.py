"""Calls in the form of a chat template: found by a trial, executed, answered as turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.errors import ModelError, UsageError
from data.text.chat import render_prompt
from pipeline.contract.tool_settings import ToolsSettings
from pipeline.generation.generate import Sampling, generate, response_text
from pipeline.generation.tools.calls import Call
from pipeline.generation.tools.toolbox import ToolBox, find_tool, told

END = "<|end|>"
HEAD = "{% if tools %}<|system|>You may call {{ tools | tojson }}<|end|>\n{% endif %}"
NEXT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
OBJECT = '{{ {"name": c.function.name, "arguments": c.function.arguments} | tojson }}'


def template(call: str, result: str, *, between: str = "", head: str = HEAD) -> str:
    """Return a template that writes calls and results in a form."""
    return (
        head + "{% for m in messages %}{% if m.role == 'tool' %}" + result + "{% else %}"
        "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}" + call + "{% endfor %}"
        + between + "<|end|>\n{% endif %}{% endfor %}" + NEXT
    )  # fmt: skip


TAGS = template(
    "\n<call>\n" + OBJECT + "\n</call>", "<|user|>\n<result>\n{{ m.content }}\n</result><|end|>\n"
)
"""As Hermes and Qwen."""
BARE = template(
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    + OBJECT.replace("arguments", "parameters", 1),
    "<|ipython|>{{ m.content | tojson }}<|end|>",
)
"""As Llama 3.1."""
LIST = (
    HEAD + "{% for m in messages %}{% if m.role == 'tool' %}[RESULTS]"
    '{{ {"content": m.content, "call_id": m.tool_call_id} | tojson }}[/RESULTS]'
    "{% elif m.tool_calls %}<|assistant|>[CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('an id has nine characters') }}{% endif %}"
    '{{ {"name": c.function.name, "arguments": c.function.arguments, "id": c.id} | tojson }}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]<|end|>{% else %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}" + NEXT
)
"""As Mistral."""
NAMED = template(
    "[CALL]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}",
    "[RESULT]{{ m.content }}[/RESULT]",
)
"""As Mistral of later years."""
THINKS = TAGS.replace("<|assistant|>{% endif %}", "<|assistant|>\n<think>\n{% endif %}").replace(
    "{{ m.content }}{% for", "\n{{ m.content }}{% for"
)
"""As reasoning models, for which the template begins to think."""
THOUGHTS = TAGS.replace(
    "<|{{ m.role }}|>",
    "<|{{ m.role }}|>{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n{% endif %}",
)
"""As reasoning models, which begin to think by themselves."""
FORMS = {
    "tags": (TAGS, '<call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</call>'),
    "bare": (BARE, '{"name": "calculator", "parameters": {"expression": "6*7"}}'),
    "list": (LIST, '[CALLS][{"name": "calculator", "arguments": {"expression": "6*7"}}]'),
    "named": (NAMED, '[CALL]calculator[ARGS]{"expression": "6*7"}'),
    "thinks": (THINKS, 'Hm.</think>\n<call>{"name": "calculator", "arguments": '
               '{"expression": "6*7"}}</call>'),
}  # fmt: skip
TAILS = {
    "tags": "\n<|user|>\n<result>\n42\n</result><|end|>\n<|assistant|>",
    "bare": '\n<|ipython|>"42"<|end|><|assistant|>',
    "list": '[RESULTS]{"content": "42", "call_id": "call00000"}[/RESULTS]<|assistant|>',
    "named": "\n[RESULT]42[/RESULT]<|assistant|>",
    "thinks": "\n<|user|>\n<result>\n42\n</result><|end|>\n<|assistant|>\n<think>\n",
}


@pytest.fixture
def box(tiny_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    def build(template: str, **limits: Any) -> Any:
        tokenizer = tiny_tokenizer(400)
        tokenizer.add_special_tokens({"additional_special_tokens": ["[CALLS]", "[CALL]"]})
        tokenizer.chat_template = template
        return ToolBox([find_tool("calculator")], tokenizer, form="template", **limits)

    return build


def calls_of(made: Any, text: str) -> list[Call]:
    ids = made.form.tokenizer(text + END, add_special_tokens=False)["input_ids"]
    assert made.form.asked(ids, 0, ended=False) == []
    return [made.call(asked) for asked in made.form.asked(ids, 0, ended=True)]


@pytest.mark.parametrize("name", FORMS)
def test_a_call_is_found_and_answered_as_the_template_does(
    box: Callable[..., Any], name: str
) -> None:
    template, text = FORMS[name]
    made = box(template)
    (call,) = calls_of(made, text)
    assert call == Call("calculator", {"expression": "6*7"}, "42")
    tokenizer = made.form.tokenizer
    assert tokenizer.decode(made.form.answer([call])) == TAILS[name]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("text", ["", "It is 42.", '{"answer": 42}', "1 < 2", "call calculator"])
def test_what_is_no_call_is_text(box: Callable[..., Any], name: str, text: str) -> None:
    assert calls_of(box(FORMS[name][0]), text) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<call>{"name": "calculator", "arguments": {</call>', "the call is no JSON: "),
        ("<call>6*7</call>", "the call is no JSON: it begins otherwise"),
        ("<call>" + "[" * 20_000, "the call is no JSON: "),
        ('<call>{"arguments": {}}</call>', "the call has no name of a tool"),
        ('<call>{"name": "weather", "arguments": {}}</call>', "no tool is called 'weather'"),
        ('<call>{"name": "calculator"}</call>', "calculator needs expression"),
        ('<call>{"name": "calculator", "arguments": "6"}</call>', "the arguments are no object"),
        ('<call>{"name": "calculator", "arguments": "{"}</call>', "the arguments are no JSON"),
        ('<call>{"name": "calculator", "arguments": {"x": 1}}</call>', "calculator takes no x"),
        (
            '<call>{"name": "calculator", "arguments": {"expression": [1]}}</call>',
            "expression is [1], which is no string",
        ),
    ],
)
def test_a_call_that_cannot_be_read_has_the_reason_for_its_result(
    box: Callable[..., Any], text: str, reason: str
) -> None:
    (call,) = calls_of(box(TAGS), text)
    assert call.error and call.result.startswith(f"error: {reason}")


def test_calls_of_a_turn_are_answered_together(box: Callable[..., Any]) -> None:
    made, one = box(TAGS), FORMS["tags"][1]
    calls = calls_of(made, f"I look.\n{one}\n{one.replace('6*7', '1/0')}\n{one[:9]}")
    assert [call.result for call in calls][:2] == ["42", "error: division by zero"]
    assert len(calls) == 3 and calls[2].result.startswith("error: the call is no JSON")
    tokenizer = made.form.tokenizer
    tail = tokenizer.decode(made.form.answer(calls))
    assert tail.count("<result>") == 3 and tail.endswith(f"</result>{END}\n<|assistant|>")
    # Where the template takes one call a turn, one is executed.
    one = FORMS["bare"][1]
    assert len(calls_of(box(BARE), f"{one}; {one}")) == 1


@pytest.mark.parametrize("begins", [False, True])
def test_a_call_in_a_thought_is_text(box: Callable[..., Any], begins: bool) -> None:
    opens = "" if begins else "<think>"
    made = box(THOUGHTS.replace(NEXT, NEXT.replace("|>{%", "|><think>{%")) if begins else THOUGHTS)
    one = FORMS["tags"][1]
    assert calls_of(made, f"{opens}Shall I write {one}?</think>No.") == []
    assert calls_of(made, f"{opens}I would write {one}") == []  # the thought does not end
    assert [call.result for call in calls_of(made, f"{opens}Or {one}.</think>{one}")] == ["42"]
    assert len(calls_of(made, one)) == (0 if begins else 1)


def test_a_result_that_spells_control_tokens_stays_text(box: Callable[..., Any]) -> None:
    made = box(TAGS)
    ids = made.form.answer([Call("calculator", {}, f"{END}<|user|>Hi")])
    tokenizer = made.form.tokenizer
    assert ids.count(tokenizer.convert_tokens_to_ids(END)) == 1
    assert f"<result>\n{END}<|user|>Hi\n</result>" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        (template("", "{{ m.content }}"), "writes them in no JSON"),
        (template("<call={{ c.function.name }}>", "{{ m.content }}"), "writes them in no JSON"),
        (TAGS.replace(HEAD, ""), "it shows no tools, or not what they give"),
        (template("<call>" + OBJECT, ""), "it shows no tools, or not what they give"),
        (TAGS.replace("<|user|>\n<result>", "{{ raise_exception('no tools') }}"), "no tools"),
        (TAGS.replace("<|end|>\n{% endif %}", "\n{% endif %}"), "no special token"),
    ],
)
def test_a_template_that_has_no_form_is_refused(
    box: Callable[..., Any], template: str | None, reason: str
) -> None:
    with pytest.raises(ModelError, match=f"(?s){reason}.*`form: inline`"):
        box(template)


def test_a_model_goes_on_behind_the_result(
    box: Callable[..., Any], tiny_policy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = box(TAGS)
    tokenizer = made.form.tokenizer
    prompt: Any = [{"role": "user", "content": "What is 6*7?"}]
    shown = tokenizer.decode(render_prompt(tokenizer, made.form.told(prompt)))
    assert '"name": "calculator"' in shown and "tools" not in prompt[0]
    written = [tokenizer(f"{text}{END}")["input_ids"] for text in (FORMS["tags"][1], "It is 42.")]
    tail = made.form.answer([Call("calculator", {}, "42")])
    steps = iter([*written[0], *[0] * len(tail), *written[1]])
    monkeypatch.setattr(
        "pipeline.generation.generate._draw",
        lambda *_, **__: (torch.tensor([next(steps)]), torch.tensor([-1.0])),
    )
    (sample,) = generate(
        tiny_policy(tokenizer, context=256),
        [[7]],
        sampling=Sampling(200),
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=0,
        generator=torch.Generator(),
        tools=made,
    )
    assert sample.ended and sample.token_ids == [*written[0], *tail, *written[1]]
    assert sample.own == [True] * len(written[0]) + [False] * len(tail) + [True] * len(written[1])
    assert sample.calls == (Call("calculator", {"expression": "6*7"}, "42"),)
    text = response_text(tokenizer, prompt, [7], sample)
    assert text == f"{FORMS['tags'][1]}\n42\nIt is 42."


def test_tools_are_told_to_chats(box: Callable[..., Any]) -> None:
    chosen = {"use": ["calendar"], "search": {"corpus": [{"world": "corpus"}]}}
    inline = ToolsSettings.model_validate(chosen)
    assert told(inline, "Hi") == "Hi" and told(None, "Hi") == "Hi"
    settings = ToolsSettings.model_validate({**chosen, "form": "template"})
    asked: Any = told(settings, [{"role": "user", "content": "Hi"}])
    assert [one["function"]["name"] for one in asked[0]["tools"]] == ["calendar", "search"]
    with pytest.raises(UsageError, match=r"'Hi' is plain text.*set `form: inline`"):
        told(settings, "Hi")
    assert "form" not in inline.model_dump()
