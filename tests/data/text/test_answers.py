"""Which tokens of a conversation are learned, on templates after those of well-known families."""

from typing import Any

import pytest

from data.errors import ModelError
from data.records import chat
from data.text.answers import AnswerNotes
from data.text.chat import render_conversation, render_prompt

FAMILIES = ["chatml", "llama3", "qwen3", "gemma", "mistral"]
KINDS = ["byte_level", "trimmed", "metaspace", "metaspace_always"]
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "<|endoftext|>",
}


def learned(tokenizer: Any, rendered: Any) -> list[int]:
    return [i for i, mine in zip(*rendered, strict=True) if mine]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ["Mara bakes.", "\n a", "é", " ", "", "It\n\n"])
def test_a_row_begins_with_what_is_sampled_from_and_ends_with_the_end_of_the_turn(
    tokenizer_of, family, kind, answer
):
    made = tokenizer_of(family, kind)
    notes = AnswerNotes()
    rendered = render_conversation(made, chat("Who is it?", answer), notes)
    opening = render_prompt(made, chat("Who is it?"))
    assert rendered.ids[: len(opening)] == opening
    assert not any(rendered.assistant_mask[: len(opening)])
    assert rendered.assistant_mask[len(opening)]
    taught = learned(made, rendered)
    assert taught == rendered.ids[len(opening) :][: len(taught)]
    assert made.convert_ids_to_tokens(taught[-1]) == ENDS[family]
    assert sum(notes.ends.values()) == 1
    assert not notes.left_out
    assert answer.strip() in made.decode(taught)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "mistral"])
def test_every_answer_of_a_chat_is_learned(tokenizer_of, family, kind):
    made = tokenizer_of(family, kind)
    turns = chat("Who?", "Mara bakes.", "What?", "bread", "x", "y")
    notes = AnswerNotes()
    text = made.decode(learned(made, render_conversation(made, turns, notes)))
    assert [part.strip() for part in text.split(ENDS[family])] == ["Mara bakes.", "bread", "y", ""]
    assert notes.ends == {made.convert_tokens_to_ids(ENDS[family]): 3}


def test_of_a_template_that_drops_earlier_thoughts_the_last_answer_is_learned(tokenizer_of):
    made = tokenizer_of("qwen3")
    notes = AnswerNotes()
    last = "<think>\nso\n</think>\n\nBread."
    turns = chat("Who?", "<think>\nhm\n</think>\n\nMara.", "What?", last)
    rendered = render_conversation(made, turns, notes)
    assert made.decode(learned(made, rendered)) == last + "<|im_end|>"
    assert "1 answers are not learned: the chat template changes earlier turns" in notes.lines()[0]


def marked(start: str, end: str) -> str:
    """Return a template whose marks stand where asked, around the header, text and end."""
    opened, closed = "{% generation %}", "{% endgeneration %}"
    header, said, end_token, behind = "<|assistant|>", "{{ m.content }}", "<|end|>", "<|user|>"
    parts = {"header": header, "text": said, "end": end_token, "next": behind}
    turn = "".join(
        (opened if name == start else "") + part + (closed if name == end else "")
        for name, part in parts.items()
        if name != "next" or end == "next"
    )
    other = "<|{{ m.role }}|>{{ m.content }}<|end|>"
    if end == "next":
        other = "{% if loop.first %}<|user|>{% endif %}{{ m.content }}<|end|>"
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        + turn
        + "{% else %}"
        + other
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        ("text", "end", ""),
        ("text", "text", "leave out <|end|>, which ends them"),
        ("header", "end", "begin before them"),
        ("header", "text", "begin before them"),
        ("end", "end", ""),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_marks_are_not_trusted_with_where_an_answer_begins_and_ends(
    tokenizer_of, kind, start, end, told
):
    made = tokenizer_of(marked(start, end), kind, ["<|user|>", "<|assistant|>", "<|end|>"])
    notes = AnswerNotes()
    rendered = render_conversation(made, chat("Who?", " Mara", "x", "y"), notes)
    text = made.decode(learned(made, rendered))
    expected = ["", "", ""] if start == "end" else ["Mara", "y", ""]
    assert [part.strip() for part in text.split("<|end|>")] == expected
    assert any(told in line and line.startswith("2 answers") for line in notes.lines()) or (
        not told and not notes.lines()
    )


def test_marks_that_run_on_end_with_the_turn(tokenizer_of):
    template = (
        "{% for m in messages %}{% if loop.index0 == 0 %}<|user|>{{ m.content }}<|end|>"
        "{% endif %}{% endfor %}"
        "{% generation %}{% for m in messages %}{% if loop.index0 > 0 %}<|{{ m.role }}|>"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}{% endgeneration %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    made = tokenizer_of(template)
    notes = AnswerNotes()
    rendered = render_conversation(made, chat("Who?", "Mara", "What?", "Bread"), notes)
    assert made.decode(learned(made, rendered)) == "Mara<|end|>Bread<|end|>"
    assert any("run on into the next turn" in line for line in notes.lines())


def test_of_a_template_that_marks_the_last_answer_alone_it_alone_is_learned(tokenizer_of):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    made = tokenizer_of(template)
    notes = AnswerNotes()
    rendered = render_conversation(made, chat("Who?", "Mara", "What?", "Bread"), notes)
    assert made.decode(learned(made, rendered)) == "Bread<|end|>"
    assert notes.lines() == [
        "1 answers are not learned: the chat template marks none of their text"
    ]


def test_thoughts_that_the_template_leaves_unmarked_stay_so(tokenizer_of):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
        "({{ m.reasoning_content }}){% generation %}{{ m.content }}<|end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    made = tokenizer_of(template)
    turns: list[Any] = chat("Who?", "Mara")
    turns[1]["reasoning_content"] = "hm"
    assert made.decode(learned(made, render_conversation(made, turns))) == "Mara<|end|>"


def test_an_opening_that_training_never_shows_is_refused(tokenizer_of):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
    )
    made = tokenizer_of(template)
    with pytest.raises(ModelError, match="opens them otherwise for sampling than in training"):
        render_conversation(made, chat("Who?", "Mara"))


def test_a_template_without_an_end_of_turn_is_refused(tokenizer_of):
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(ModelError, match="a model would never end"):
        render_conversation(tokenizer_of(template), chat("Who?", "Mara"))


def test_several_answers_in_a_row_and_one_at_the_start(tokenizer_of):
    made = tokenizer_of("chatml")
    turns: list[Any] = chat("Who?", "Mara")
    greeting: Any = {"role": "assistant", "content": "Hello"}
    notes = AnswerNotes()
    turns = [greeting, *turns, {**greeting, "content": "Bye"}]
    rendered = render_conversation(made, turns, notes)
    assert made.decode(learned(made, rendered)) == "Mara<|im_end|>Bye<|im_end|>"
    assert notes.lines() == [
        "1 answers are not learned: a chat begins with them, so that nothing asks for them"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_template_writes_behind_the_last_turn_alone_loses_no_answer(tokenizer_of, kind):
    """As Phi 3's, which puts the end of the sequence behind the whole chat."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    )
    made = tokenizer_of(template, kind, ["<|user|>", "<|assistant|>", "<|end|>"])
    turns = chat("Who?", "Mara", "What?", "bread", "x", "Mara")
    notes = AnswerNotes()
    rendered = render_conversation(made, turns, notes)
    assert not notes.lines()
    text = made.decode(learned(made, rendered)).replace(" ", "")
    assert text == "Mara<|end|>bread<|end|>Mara<|end|>\n<|endoftext|>"
    for place in (1, 3, 5):
        opening = render_prompt(made, turns[:place])
        assert rendered.ids[: len(opening)] == opening
        assert rendered.assistant_mask[len(opening)]


def test_a_control_token_with_text_behind_it_ends_no_turn(tokenizer_of):
    """As a mark before calls of tools, in a template that ends the turn with no token."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<|call|>"
        "{{ m.tool_calls[0].function.name }}\n{% else %}{{ m.content }}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    made = tokenizer_of(template, specials=["<|user|>", "<|assistant|>", "<|end|>", "<|call|>"])
    turns: list[Any] = chat("Who?", "")
    turns[1]["tool_calls"] = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    with pytest.raises(ModelError, match="a model would never end"):
        render_conversation(made, turns)
