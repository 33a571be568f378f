"""Tiny models and a tokenizer, made from their configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SPECIALS = (
    "<|pad|>", "<|bos|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Bytes alone, no merges: 256 letters and the special tokens; `<|end|>` ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*SPECIALS, *letters])}
    bytes_alone = Tokenizer(models.BPE(vocab=words, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def pair_tokenizer() -> Any:
    """An encoder's: letters, `[CLS] a [SEP] b [SEP]`, no end-of-sequence token, no template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    letters = "abcdefghijklmnopqrstuvwxyz .?!"
    words = {word: i for i, word in enumerate([*specials, *letters])}
    by_letter = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    by_letter.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    by_letter.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=by_letter,
        pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
    )  # fmt: skip


def _llama(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


def _gpt2(tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64,
            eos_token_id=6, bos_token_id=1,
        )
    )  # fmt: skip


def _bert(tokenizer: Any) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64, hidden_dropout_prob=0.1,
        )
    )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Any, pair_tokenizer: Any) -> Callable[[str], Path]:
    """Return a builder of untrained checkpoints: "llama", "gpt2" or "bert"."""

    def build(architecture: str = "llama") -> Path:
        import torch

        torch.manual_seed(0)
        builder = {"llama": _llama, "gpt2": _gpt2, "bert": _bert}[architecture]
        words = pair_tokenizer if architecture == "bert" else tokenizer
        folder = tmp_path / architecture
        builder(words).save_pretrained(folder)
        words.save_pretrained(folder)
        return folder

    return build
