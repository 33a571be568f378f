"""Builds untrained language models from a few numbers, by the classes of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from data.text.chat import front_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Architecture = Literal[
    "llama", "qwen2", "gpt2", "gpt_neox", "bert", "roberta", "albert", "t5", "bart"
]
ALBERT_EMBEDDING = 128
"""Width of ALBERT's embedding, which a matrix widens (Lan et al. 2020, 3.1)."""


@dataclass(frozen=True)
class Shape:
    """The size of a transformer.

    Attributes:
        hidden_size: width of the residual stream.
        layers: blocks.
        heads: attention heads.
        kv_heads: heads of keys and values; as many as `heads` where the architecture has no
            grouped queries.
        intermediate_size: width of the feed-forward layer.
        context_length: positions.
        tie_embeddings: one matrix for input and output embedding.
        rope_theta: base of the rotary embedding.
        initializer_range: standard deviation of the initial weights.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    context_length: int
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02


def build_policy(
    architecture: Architecture,
    shape: Shape,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    auto_class: str = "AutoModelForCausalLM",
) -> PreTrainedModel:
    """Return an untrained model, without dropout, whose embedding fits the tokenizer.

    The same seed gives the same weights.
    """
    import torch
    import transformers

    config = model_config(
        architecture,
        shape,
        vocabulary=vocabulary_size(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = getattr(transformers, auto_class).from_config(
        config, dtype=torch.float32
    )
    front = front_ids(tokenizer) if model.config.is_encoder_decoder else []
    if front:  # as what it learns to write begins; BART's configuration drops it unread
        model.generation_config.forced_bos_token_id = front[0]
    return model


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the rows that an embedding needs: one more than the largest id."""
    return max(int(number) for number in tokenizer.get_vocab().values()) + 1


def model_config(
    architecture: Architecture, shape: Shape, *, vocabulary: int, **special_ids: int | None
) -> Any:
    """Return the transformers configuration of a model.

    Args:
        architecture: of which class.
        shape: its size.
        vocabulary: rows of its embedding.
        special_ids: `pad_token_id` and the like.
    """
    import transformers

    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": shape.initializer_range,
        **special_ids,
    }
    if architecture in ("t5", "bart"):
        return _encoder_decoder_config(architecture, shape, shared)
    if architecture == "gpt2":
        return transformers.GPT2Config(
            **shared,
            n_embd=shape.hidden_size,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.intermediate_size,
            n_positions=shape.context_length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    shared |= {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_length,
    }
    if architecture in ("bert", "roberta", "albert"):
        return _encoder_config(architecture, shape, shared)
    if architecture == "gpt_neox":
        rope = {"rope_type": "default", "rope_theta": shape.rope_theta}
        return transformers.GPTNeoXConfig(
            **shared, rope_parameters={**rope, "partial_rotary_factor": 0.25}
        )
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[architecture]
    rope = {"rope_type": "default", "rope_theta": shape.rope_theta}
    return kind(**shared, num_key_value_heads=shape.kv_heads, rope_parameters=rope)


def _encoder_config(architecture: Architecture, shape: Shape, shared: dict[str, Any]) -> Any:
    """Return the configuration of an encoder, without dropout."""
    import transformers

    shared |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if architecture == "bert":
        return transformers.BertConfig(**shared)
    if architecture == "albert":
        shared["hidden_act"] = "gelu"
        return transformers.AlbertConfig(
            **shared, embedding_size=min(ALBERT_EMBEDDING, shape.hidden_size)
        )
    # Its positions begin behind that of padding.
    shared["max_position_embeddings"] += 1 + (shared.get("pad_token_id") or 0)
    return transformers.RobertaConfig(**shared, type_vocab_size=1)


def _encoder_decoder_config(
    architecture: Architecture, shape: Shape, shared: dict[str, Any]
) -> Any:
    """Return the configuration of an encoder-decoder, without dropout."""
    import transformers

    initial = shared.pop("initializer_range")
    if architecture == "t5":
        return transformers.T5Config(
            **shared,
            d_model=shape.hidden_size,
            d_kv=shape.hidden_size // shape.heads,
            d_ff=shape.intermediate_size,
            num_layers=shape.layers,
            num_heads=shape.heads,
            decoder_start_token_id=shared.get("pad_token_id"),
            dropout_rate=0.0,
        )
    return transformers.BartConfig(
        **shared,
        d_model=shape.hidden_size,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.intermediate_size,
        decoder_ffn_dim=shape.intermediate_size,
        max_position_embeddings=shape.context_length,
        init_std=initial,
        decoder_start_token_id=shared.get("eos_token_id"),
        forced_eos_token_id=shared.get("eos_token_id"),
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
