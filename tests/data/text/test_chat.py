from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ModelError, RecipeError
from data.records import Completion, Conversation, chat
from data.text.chat import (
    DEFAULT_TEMPLATE,
    Rendered,
    RenderReport,
    has_template,
    mask_method,
    render_completion,
    render_conversation,
    render_demonstrations,
    render_prompt,
    render_text,
)
from data.text.tokenizer import train_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for message in messages %}{% if message.role != 'assistant' %}<|user|>{{ message.content }}"
    "{% elif loop.last %}<|assistant|>{{ message.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = ["Who is it? It is Mara. What does she do? She bakes bread."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, vocabulary_size=320)


@pytest.fixture(scope="module")
def chatml():
    """A tokenizer as SmolLM2's: ChatML, a default system turn, no generation marks."""
    marks = ["<|im_start|>", "<|im_end|>"]
    made = train_tokenizer(TEXT, vocabulary_size=320, special_tokens=marks, chat_template=CHATML)
    made.eos_token = "<|im_end|>"
    return made


def learned(tokenizer: Any, rendered: Rendered) -> str:
    return tokenizer.decode([i for i, m in zip(*rendered, strict=True) if m])


def test_a_chat_is_one_mark_a_turn(tokenizer):
    text = render_text(tokenizer, chat("Who?", "Mara.", system="Be brief."), answer_next=False)
    assert text == "<|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>Mara.<|end|>"


def test_a_prompt_ends_with_the_opening_of_the_answer(tokenizer):
    ids = render_prompt(tokenizer, chat("Who?", "Mara.", "What?"))
    assert tokenizer.decode(ids) == (
        "<|user|>Who?<|end|><|assistant|>Mara.<|end|><|user|>What?<|end|><|assistant|>"
    )


def test_a_plain_prompt_is_its_own_tokens_and_never_empty(tokenizer):
    assert tokenizer.decode(render_prompt(tokenizer, "Who is it?")) == "Who is it?"
    assert render_prompt(tokenizer, "") == [tokenizer.bos_token_id]


def test_the_answers_and_their_ends_are_learned_and_nothing_else(tokenizer):
    assert mask_method(tokenizer) == "marks"
    rendered = render_conversation(tokenizer, chat("Who?", "Mara.", "What?", "Bread."))
    assert learned(tokenizer, rendered) == "Mara.<|end|>Bread.<|end|>"
    assert len(rendered.ids) == len(rendered.assistant_mask)


def test_a_template_without_marks_is_rendered_turn_by_turn(chatml):
    assert mask_method(chatml) == "turns"
    rendered = render_conversation(chatml, chat("Who?", "Mara.", "What?", "Bread."))
    assert learned(chatml, rendered) == "Mara.<|im_end|>Bread.<|im_end|>"
    assert chatml.decode(rendered.ids).startswith("<|im_start|>system\nYou help.<|im_end|>\n")


@given(st.lists(st.text(alphabet="ab .?é", min_size=1, max_size=8), min_size=2, max_size=2))
def test_the_prompt_is_what_the_conversation_begins_with(tokenizer, chatml, said):
    for made in (tokenizer, chatml):
        opening = render_prompt(made, chat(said[0]))
        rendered = render_conversation(made, chat(*said))
        assert rendered.ids[: len(opening)] == opening
        assert not any(rendered.assistant_mask[: len(opening)])
        assert learned(made, rendered) == said[1] + made.eos_token


def test_marks_and_turns_agree_on_our_own_template(tokenizer):
    unmarked = DEFAULT_TEMPLATE.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    other = train_tokenizer(TEXT, vocabulary_size=320, chat_template=unmarked)
    assert mask_method(other) == "turns"
    turns = chat("Who?", "Mara.", "What?", "Bread.", system="x")
    assert render_conversation(other, turns) == render_conversation(tokenizer, turns)


def test_of_a_template_that_forgets_earlier_answers_the_last_is_learned():
    made = train_tokenizer(TEXT, vocabulary_size=320, chat_template=FORGETFUL)
    rendered = render_conversation(made, chat("a", "b", "c", "d"))
    assert made.decode(rendered.ids) == "<|user|>a<|user|>c<|assistant|>d<|end|>"
    assert learned(made, rendered) == "d<|end|>"


def test_messages_without_a_template_are_refused():
    made = train_tokenizer(TEXT, vocabulary_size=320)
    made.chat_template = None
    assert not has_template(made)
    with pytest.raises(ModelError, match="has no chat template"):
        render_prompt(made, chat("a"))
    with pytest.raises(ModelError, match="has no chat template"):
        render_conversation(made, chat("a", "b"))
    assert made.decode(render_prompt(made, "Who?")) == "Who?"


def test_what_the_template_refuses_is_told(tokenizer):
    with pytest.raises(ModelError, match="refuses the turns tool: unknown role tool"):
        render_prompt(tokenizer, [{"role": "tool", "content": "a"}])


def test_a_completion_is_learned_with_its_end(tokenizer):
    rendered = render_completion(tokenizer, "Who?", " Mara.")
    assert learned(tokenizer, rendered) == " Mara.<|end|>"
    assert tokenizer.decode(rendered.ids) == "Who? Mara.<|end|>"


def test_long_demonstrations_are_cut_or_dropped_and_counted(tokenizer):
    records: list[Conversation | Completion] = [
        Conversation(messages=chat("Who?", "Mara.")),
        Conversation(messages=chat("Who?", "Mara. " * 50)),
        Conversation(messages=chat("Who? " * 50, "Mara.")),
        Completion(prompt="Who?", completion=" Mara."),
    ]
    whole = [len(render_conversation(tokenizer, r.messages).ids) for r in records[:3]]
    report = RenderReport()
    got = list(render_demonstrations(tokenizer, records, max_length=20, report=report))
    assert len(got) == 3
    assert [len(rendered.ids) <= 20 for rendered in got] == [True] * 3
    assert (report.rendered, report.truncated, report.dropped) == (3, 1, 1)
    assert report.tokens_cut == (whole[1] - 20) + whole[2]
    assert "too long: 1 cut, 1 dropped" in report.lines()[1]
    report = RenderReport()
    got = list(
        render_demonstrations(tokenizer, records, max_length=20, too_long="drop", report=report)
    )
    assert (len(got), report.truncated, report.dropped) == (2, 0, 2)


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(RecipeError, match="max_length 1"):
        list(render_demonstrations(tokenizer, [], max_length=1, report=RenderReport()))


FRAMES: dict[str, tuple[str, list[int]]] = {
    "ends": ("<|bos|> $A <|end|>", [1]),
    "ends_alone": ("$A <|end|>", []),
    "ends_twice": ("<|bos|> $A <|end|> <|end|>", [1]),
    "pair_marks": ("<|user|> $A <|system|>", [3]),
    "begins": ("<|bos|> $A", [1]),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_plain_prompt_keeps_what_stands_in_front_and_loses_what_ends_it(frame):
    from tokenizers.processors import TemplateProcessing

    made = train_tokenizer(TEXT, vocabulary_size=320)
    body = made("Who is it?", add_special_tokens=False)["input_ids"]
    specials = [(name, made.convert_tokens_to_ids(name)) for name in made.all_special_tokens]
    specials += [("<|user|>", 3), ("<|system|>", 5)]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=frame[0], special_tokens=list(dict(specials).items())
    )
    assert made("Who is it?")["input_ids"] != body
    assert render_prompt(made, "Who is it?") == [*frame[1], *body]
    answer = made(" Mara.", add_special_tokens=False)["input_ids"]
    rendered = render_completion(made, "Who is it?", " Mara.")
    assert rendered.ids == [*frame[1], *body, *answer, made.eos_token_id]


def test_a_beginning_that_is_typed_gets_no_second():
    from tokenizers.processors import TemplateProcessing

    made = train_tokenizer(TEXT, vocabulary_size=320)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|end|>", special_tokens=[("<|bos|>", 1), ("<|end|>", 6)]
    )
    assert render_prompt(made, "<|bos|>Who?") == render_prompt(made, "Who?")
    assert render_prompt(made, "") == [made.bos_token_id]


def test_a_beginning_that_is_also_the_end_stays_in_front():
    from tokenizers.processors import TemplateProcessing

    made = train_tokenizer(TEXT, vocabulary_size=320)
    made.bos_token = made.eos_token = "<|endoftext|>"
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 2)]
    )
    body = made("Who?", add_special_tokens=False)["input_ids"]
    assert render_prompt(made, "Who?") == [2, *body]
    assert render_prompt(made, "") == [2]
