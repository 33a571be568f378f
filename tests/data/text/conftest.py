"""Chat templates after those of well-known families, and tokenizers that carry them."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from data.text.tokenizer import train_tokenizer

TEXT = ["Who is it? It is Mara. What does she do? She bakes bread. assistant user think"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set said = m.content %}{% set thought = '' %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n"
    "{% endif %}{{ said }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MARKS = {
    CHATML: ["<|im_start|>", "<|im_end|>"],
    LLAMA3: ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    QWEN3: ["<|im_start|>", "<|im_end|>"],
    GEMMA: ["<start_of_turn>", "<end_of_turn>"],
    MISTRAL: ["[INST]", "[/INST]"],
}
FAMILIES = {"chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3, "gemma": GEMMA, "mistral": MISTRAL}


def byte_level(
    template: str, specials: list[str], *, trim: bool = False, text: Sequence[str] = TEXT
) -> Any:
    """Return a tokenizer of ours, on request one whose offsets leave out spaces."""
    from tokenizers import processors

    made = train_tokenizer(
        list(text) * 3, vocabulary_size=360, special_tokens=specials, chat_template=template
    )
    if trim:
        made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def metaspace(
    template: str, specials: list[str], *, scheme: str = "first", text: Sequence[str] = TEXT
) -> Any:
    """Return a tokenizer after Llama 2's: spaces are part of the word behind them, as a mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    letters = [chr(code) for code in range(33, 127)]
    first = ["<unk>", "<|pad|>", "<|bos|>", "<|endoftext|>", *specials]
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + 256 + 140,
        special_tokens=[*first, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[*letters, "▁"],
        show_progress=False,
    )
    made.train_from_iterator(list(text) * 3, trainer=trainer)
    content = json.loads(made.to_str())
    # Bytes are pieces of the vocabulary, no added tokens.
    content["added_tokens"] = content["added_tokens"][: len(first)]
    made = Tokenizer.from_str(json.dumps(content))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        unk_token="<unk>",
        eos_token="<|endoftext|>",
        additional_special_tokens=specials,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = template
    return wrapped


KINDS: dict[str, Callable[..., Any]] = {
    "byte_level": byte_level,
    "trimmed": partial(byte_level, trim=True),
    "metaspace": metaspace,
    "metaspace_always": partial(metaspace, scheme="always"),
}


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[..., Any]:
    """Make a small tokenizer: family of its template (or a template), and kind of vocabulary."""

    def make(
        family: str,
        kind: str = "byte_level",
        specials: list[str] | None = None,
        text: Sequence[str] = TEXT,
    ) -> Any:
        template = FAMILIES.get(family, family)
        names = MARKS.get(template, []) if specials is None else specials
        made = KINDS[kind](template, names, text=text)
        made.eos_token = "<|endoftext|>"
        return made

    return make
