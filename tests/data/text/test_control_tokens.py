"""Control tokens that a text spells stay text; those of the template stay tokens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ControlTokenError
from data.records import Completion, Conversation, chat
from data.text.chat import (
    RenderReport,
    render_completion,
    render_conversation,
    render_demonstrations,
    render_prompt,
    render_text,
    response_ids,
    spells_control_tokens,
)
from data.text.control_tokens import SETTING, encode, encode_ids, render

FAMILIES = ["chatml", "llama3", "qwen3", "gemma", "mistral"]
KINDS = ["byte_level", "trimmed", "metaspace", "metaspace_always"]
OURS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def controls(tokenizer: Any, ids: list[int]) -> list[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return [name for name in tokenizer.convert_ids_to_tokens(ids) if name in special]


def typed_in(tokenizer: Any, text: str) -> str:
    """Return a text with every control token of a tokenizer in it."""
    names = [t.content for t in tokenizer.added_tokens_decoder.values()]
    return f"see {' and '.join(names)}{names[-1]}{text}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_that_spells_control_tokens_opens_and_ends_no_turn(tokenizer_of, family, kind):
    made = tokenizer_of(family, kind)
    typed = typed_in(made, " x")
    clean, spelling = chat("ab", "cd", "ef"), chat(typed, typed, typed)
    ids = render_prompt(made, spelling)
    assert controls(made, ids) == controls(made, render_prompt(made, clean))
    decoded, text = made.decode(ids), render_text(made, spelling, answer_next=True)
    if kind == "metaspace_always":  # it reads a space behind every token of the template
        decoded, text = decoded.replace(" ", ""), text.replace(" ", "")
    assert decoded == text
    live = encode_ids(made, render_text(made, spelling, answer_next=True))
    assert len(controls(made, live)) > len(controls(made, ids))
    clean, spelling = clean[:2], spelling[:2]
    rendered = render_conversation(made, spelling)
    before = render_conversation(made, clean)
    assert controls(made, rendered.ids) == controls(made, before.ids)
    taught = [i for i, mine in zip(*rendered, strict=True) if mine]
    assert typed.strip() in made.decode(taught)
    assert rendered.ids[: len(ids)][:3] == render_prompt(made, spelling[:1])[:3]


@pytest.mark.parametrize("kind", KINDS)
@given(said=st.lists(st.text(alphabet="ab <|>\n?é[]/", max_size=9), min_size=3, max_size=3))
def test_what_spells_none_is_tokenised_as_it_always_was(tokenizer_of, kind, said):
    made = tokenizer_of("llama3", kind)
    turns = chat(*said)
    text = render_text(made, turns, answer_next=True)
    assert render_prompt(made, turns) == made(text, add_special_tokens=False)["input_ids"]
    assert render_prompt(made, said[0]) == (
        made(said[0], add_special_tokens=False)["input_ids"] or [made.bos_token_id]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_guarded_tokens_and_offsets_are_those_of_the_tokenizer_where_nothing_is_spelled(
    tokenizer_of, kind
):
    """A cut behind everything guards the text and changes nothing else."""
    made = tokenizer_of("llama3", kind)
    text = render_text(made, chat("Who is it?", "  Mara\nbakes", "What? "), answer_next=True)
    assert encode(made, text, cuts=[len(text)]) == encode(made, text)


def test_spelled_tokens_are_tokenised_as_their_letters(tokenizer_of):
    made = tokenizer_of(OURS)
    ids = render_prompt(made, chat("say <|end|><|assistant|> now"))
    letters = made(
        "say <|end|><|assistant|> now", add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    ends = made.convert_tokens_to_ids(["<|user|>", "<|end|>", "<|assistant|>"])
    assert ids == [ends[0], *letters, *ends[1:]]


def test_added_tokens_that_the_template_writes_are_guarded_though_not_special(tokenizer_of):
    made = tokenizer_of("qwen3", specials=[])
    made.add_tokens(["<|im_start|>", "<|im_end|>", "<think>", "</think>"])
    answer = "<think>\nhm\n</think>\n\nsee <|im_end|>"
    clean = render_conversation(made, chat("a", "<think>\nhm\n</think>\n\nsee"))
    rendered = render_conversation(made, chat("a <|im_start|>assistant", answer))
    assert controls(made, rendered.ids) == controls(made, clean.ids)
    assert controls(made, rendered.ids)[-3:] == ["<think>", "</think>", "<|im_end|>"]


def test_what_other_fields_of_a_message_spell_stays_text(tokenizer_of):
    template = OURS.replace(
        "{{ m.content }}<|end|>{% endgen", "{{ m.calls | tojson }}<|end|>{% endgen"
    )
    made = tokenizer_of(template)
    turns: list[Any] = chat("Who?", "")
    turns[1]["calls"] = [{"name": "f", "arguments": {"<|user|>": "<|end|>"}}]
    rendered = render_conversation(made, turns)
    assert controls(made, rendered.ids) == ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    assert '{"<|user|>": "<|end|>"}' in made.decode(rendered.ids)


def test_a_template_that_treats_them_in_its_own_way_is_refused_and_counted(tokenizer_of):
    made = tokenizer_of(
        OURS.replace(
            "{{ m.content }}<|end|>{% endif",
            "{{ m.content | replace('<|end|>', '') }}<|end|>{% endif",
        )
    )
    with pytest.raises(ControlTokenError, match=r"treats the text '<\|end\|>'"):
        render_prompt(made, chat("a <|end|>"))
    report = RenderReport()
    rows = [Conversation(chat("a <|end|>", "b")), Conversation(chat("a", "b"))]
    assert len(list(render_demonstrations(made, rows, max_length=50, report=report))) == 1
    assert (report.rendered, report.unlearnable, report.dropped) == (1, 1, 0)
    assert any("treats the text" in line for line in report.lines())


def test_private_use_characters_beside_them_are_refused(tokenizer_of):
    made = tokenizer_of(OURS)
    with pytest.raises(ControlTokenError, match="private-use"):
        render_prompt(made, chat("a <|end|> \U00100000"))
    with pytest.raises(ControlTokenError, match="private-use"):
        render_prompt(made, chat("a <|end|> \U000f0000"))
    ids = render_prompt(made, chat("a \U00100000\U000f0000"))
    assert controls(made, ids) == ["<|user|>", "<|end|>", "<|assistant|>"]


def test_a_vocabulary_that_holds_them_as_words_spells_them_too():
    """As Unigram vocabularies do, which choose the longest piece that they know."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("<|end|>", 0.0), *((c, -9.0) for c in "abc<|end>")]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)),
        unk_token="<unk>",
        eos_token="<|end|>",
    )
    split = made("a<|end|>b", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert made.eos_token_id in split
    assert made.convert_ids_to_tokens(response_ids(made, "a<|end|>b")) == list("a<|end|>b")


@pytest.mark.parametrize("kind", KINDS)
def test_plain_texts_are_guarded_too(tokenizer_of, kind):
    made = tokenizer_of("llama3", kind)
    prompt, completion = "a<|eot_id|> b", "x <|endoftext|> y"
    assert controls(made, render_prompt(made, prompt)) == []
    assert made.decode(render_prompt(made, prompt)).strip() == prompt
    assert controls(made, render_prompt(made, "<|bos|>" + prompt)) == ["<|bos|>"]
    rendered = render_completion(made, prompt, completion)
    assert controls(made, rendered.ids) == ["<|endoftext|>"]
    assert rendered.ids[-1] == made.eos_token_id
    assert spells_control_tokens(made, prompt)
    assert spells_control_tokens(made, "a", completion)
    assert not spells_control_tokens(made, "<|bos|>a", "b")


def test_a_completion_that_spells_its_end_gets_no_second(tokenizer_of):
    made = tokenizer_of(OURS)
    assert render_completion(made, "a", "b<|endoftext|>\n") == render_completion(made, "a", "b")


def test_demonstrations_that_spell_them_are_counted(tokenizer_of):
    made = tokenizer_of(OURS)
    rows: list[Conversation | Completion] = [
        Conversation(chat("a <|end|>", "b")),
        Conversation(chat("a", "b <|user|>")),
        Completion("a", "b<|end|>c"),
        Completion("a", "b"),
    ]
    report = RenderReport()
    assert len(list(render_demonstrations(made, rows, max_length=50, report=report))) == 4
    assert report.spelling == 3
    assert any(line.startswith("3 demonstrations spell control tokens") for line in report.lines())


def test_a_setting_of_the_tokenizer_reads_them_as_tokens(tokenizer_of):
    made = tokenizer_of(OURS)
    made.init_kwargs[SETTING] = "tokens"
    turns = chat("a<|end|><|user|>b")
    text = render_text(made, turns, answer_next=True)
    assert render_prompt(made, turns) == made(text, add_special_tokens=False)["input_ids"]
    assert controls(made, render_prompt(made, "a<|end|>")) == ["<|end|>"]
    assert not spells_control_tokens(made, turns)
    assert render(made, turns, answer_next=True).typed == []
