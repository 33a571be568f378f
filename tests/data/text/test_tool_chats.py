"""Calls of tools, reasoning, tools and weights from rows through chat templates."""

from typing import Any

import pytest

from data.errors import ModelError
from data.records import Conversation, chat
from data.sources.converting import convert
from data.text.chat import (
    RenderReport,
    render_conversation,
    render_demonstrations,
    render_prompt,
    render_text,
)
from data.text.prompt_notes import PromptNotes
from data.text.tokenizer import train_tokenizer

TEXT = ["When does the ferry leave? It leaves at nine. The list says so."]
CALL = {"type": "function", "function": {"name": "ferry", "arguments": {"day": "monday"}}}
TOOL = {"type": "function", "function": {"name": "ferry", "parameters": {"type": "object"}}}
CALLING: list[Any] = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "nine"},
    {"role": "assistant", "content": "At nine.", "reasoning_content": "It says so."},
]
HEAD = "{% if tools %}[{{ tools | tojson }}]{% endif %}{% for m in messages %}<|{{ m.role }}|>"
REASON = "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}({{ c.function.name }} ARGUMENTS){% endfor %}"
TAIL = "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
OBJECTS = CALLS.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}")
STRINGS = CALLS.replace("ARGUMENTS", "{{ '' + c.function.arguments }}")
PLAIN = HEAD.partition("{% endif %}")[2] + TAIL
NO_TOOL_TURNS = PLAIN.replace("<|{{", "{% if m.role != 'tool' %}<|{{").replace(
    "<|end|>{% endfor", "<|end|>{% endif %}{% endfor"
)


def tokenizer(template: str) -> Any:
    return train_tokenizer(
        TEXT, vocabulary_size=320, special_tokens=["<|tool|>"], chat_template=template
    )


def learned(made: Any, turns: list[Any]) -> str:
    rendered = render_conversation(made, turns)
    return made.decode([i for i, mark in zip(*rendered, strict=True) if mark])


@pytest.mark.parametrize("arguments", [OBJECTS, STRINGS])
def test_calls_tools_and_reasoning_reach_the_template_and_are_learned(arguments):
    made = tokenizer(HEAD + REASON + arguments + TAIL)
    row = {"messages": CALLING, "tools": [TOOL]}
    record: Any = convert(row, "messages")
    text = render_text(made, record.messages, answer_next=False)
    assert text.startswith('[[{"type": "function", "function": {"name": "ferry"')
    assert '(ferry {"day": "monday"})' in text and "<It says so.>At nine." in text
    assert learned(made, record.messages) == (
        '(ferry {"day": "monday"})<|end|><It says so.>At nine.<|end|>'
    )
    report = RenderReport()
    assert len(list(render_demonstrations(made, [record], max_length=300, report=report))) == 1
    assert not report.not_shown


def test_turns_of_weight_0_are_shown_and_not_learned():
    made = tokenizer(HEAD + TAIL)
    turns = chat("Who?", "Mara.", "What?", "Bread.")
    turns[1]["weight"] = 0
    assert learned(made, turns) == "Bread.<|end|>"
    report = RenderReport()
    (row,) = render_demonstrations(made, [Conversation(turns)], max_length=99, report=report)
    assert "Mara." in made.decode(row.ids)
    assert "1 answers are not learned: their rows give them weight 0" in report.lines()


def test_what_the_template_shows_nothing_of_is_counted():
    made = tokenizer(PLAIN)
    turns = chat("When?", "At nine.")
    turns[0]["tools"] = [TOOL]
    turns[1]["reasoning_content"] = "It says so."
    report = RenderReport()
    records = [Conversation(turns), Conversation(turns), Conversation(chat("a", "b"))]
    assert len(list(render_demonstrations(made, records, max_length=99, report=report))) == 3
    told = report.lines()
    assert "the chat template leaves out tools of 2 demonstrations" in told
    assert "the chat template leaves out reasoning_content of 2 demonstrations" in told


@pytest.mark.parametrize(
    ("template", "what"), [(PLAIN, "tool_calls"), (NO_TOOL_TURNS, "the turns of tools")]
)
def test_a_template_that_shows_no_calls_or_what_they_gave_is_refused(template, what):
    made = tokenizer(template)
    with pytest.raises(ModelError, match=f"leaves out .*{what}"):
        list(
            render_demonstrations(made, [Conversation(CALLING)], max_length=99,
                                  report=RenderReport())
        )  # fmt: skip
    with pytest.raises(ModelError, match=f"leaves out .*{what}"):
        render_prompt(made, CALLING[:3])


def test_prompts_with_tools_or_reasoning_need_a_template_that_shows_them():
    asked = chat("Hi", "Yes?", "When?")
    asked[0]["tools"] = [TOOL]
    with pytest.raises(ModelError, match="shows no tools, which prompts hold"):
        render_prompt(tokenizer(PLAIN), asked)
    full = tokenizer(HEAD + REASON + OBJECTS + TAIL)
    assert "ferry" in full.decode(render_prompt(full, asked))
    del asked[0]["tools"]
    asked[1]["reasoning_content"] = "It says so."
    notes = PromptNotes.of(tokenizer(PLAIN), [asked, "Plain?", asked, chat("Who?")])
    assert notes.lines() == ["the chat template leaves out reasoning_content of 2 prompts"]
    assert PromptNotes.of(full, [asked]).lines() == []


def test_reasoning_that_a_template_takes_from_earlier_turns_is_its_own_matter():
    last_only = REASON.replace("{% if m", "{% if loop.last and m")
    asked = chat("Hi", "Yes?", "When?")
    asked[1]["reasoning_content"] = "It says so."
    made = tokenizer(HEAD + last_only + OBJECTS + TAIL)
    assert "says" not in made.decode(render_prompt(made, asked))
    assert PromptNotes.of(made, [asked]).lines() == []


BEHIND_CALLS = OBJECTS + "{% if not m.tool_calls %}{{ m.content }}{% endif %}<|end|>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "turns", "lost"),
    [
        (
            HEAD.replace("<|{{", "{% if m.role != 'system' %}<|{{") + "{{ m.content }}<|end|>"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            [{"role": "system", "content": "Be calm."}, *chat("When?", "At nine.")],
            "the system's turn",
        ),
        (
            HEAD + BEHIND_CALLS + TAIL.partition("{% endfor %}")[2],
            [
                CALLING[0],
                {**CALLING[1], "content": "I look."},
                CALLING[2],
                *chat("", "At nine.")[1:],
            ],
            "the text beside calls of tools",
        ),
        (
            PLAIN,
            [{"role": "user", "content": "When?", "name": "Mara"}, *chat("", "At nine.")[1:]],
            "name",
        ),
    ],
)
def test_system_turns_names_and_text_beside_calls_are_looked_for(template, turns, lost):
    made, report = tokenizer(template), RenderReport()
    told = Conversation(turns)
    assert len(list(render_demonstrations(made, [told], max_length=99, report=report))) == 1
    assert f"the chat template leaves out {lost} of 1 demonstrations" in report.lines()
    lines = PromptNotes.of(made, [told.messages[:-1]]).lines()
    assert f"the chat template leaves out {lost} of 1 prompts" in lines


MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    "templates",
    [{"default": MARKED, "tool_use": HEAD + TAIL}, {"default": PLAIN, "tool_use": MARKED}],
)
def test_the_template_for_tools_alone_says_whether_it_marks_answers(templates):
    made = tokenizer(PLAIN)
    made.chat_template = templates
    turns: list[Any] = chat("When?", "At nine.")
    turns[0]["tools"] = [TOOL]
    assert learned(made, turns) == "At nine.<|end|>"


def test_templates_without_a_default_are_refused():
    made = tokenizer(PLAIN)
    made.chat_template = {"rag": PLAIN}
    with pytest.raises(ModelError, match="chat templates named rag and none named default"):
        render_prompt(made, chat("When?"))


def test_control_tokens_in_calls_and_tools_are_counted():
    made = tokenizer(HEAD + OBJECTS + TAIL)
    calls: list[Any] = chat("When?", "")
    calls[1]["tool_calls"] = [
        {"type": "function", "function": {"name": "ferry", "arguments": {"day": "<|end|>"}}}
    ]
    tools: list[Any] = chat("When?", "At nine.")
    tools[0]["tools"] = [{**TOOL, "note": "<|user|>"}]
    rows = [Conversation(turns) for turns in (calls, tools, chat("When?", "At nine."))]
    report = RenderReport()
    assert len(list(render_demonstrations(made, rows, max_length=300, report=report))) == 3
    assert report.spelling == 2
