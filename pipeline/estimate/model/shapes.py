"""The numbers of a transformer that its cost follows from, read from a configuration.

No weights are loaded: the model is built on the meta device, where tensors have shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from data.errors import ModelError

UNGATED = (
    "gpt2", "gpt_neox", "gpt_neo", "opt", "bloom", "phi", "bert", "roberta", "albert", "bart", "t5",
    "falcon",
)  # fmt: skip
FEED_FORWARD = ("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim")
"""What configurations call the width of the feed-forward layer."""
SAVED_BY_ACTIVATION = {"gelu_new": 5, "gelu_fast": 5, "relu": 1}
"""Tensors of the feed-forward width that are kept for the backward pass, of an ungated layer: its
input and output of the activation, and what an activation that is written out in Python keeps."""


@dataclass(frozen=True)
class ModelShape:
    """A transformer in numbers.

    Attributes:
        name: what reports call it.
        layers: blocks; of an encoder-decoder all of both.
        hidden: width of the residual stream.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_size: width of a head.
        intermediate: width of the feed-forward layer that one token passes.
        vocabulary: rows of the embedding.
        parameters: all of them, with the output head, tied ones once.
        matrices: elements of the matrices that one token is multiplied by, output head and
            embeddings apart; of a mixture of experts those of the experts a token passes.
        tied: one matrix for input and output embedding.
        rms: RMS norms written out in Python, which keep what they scale (else layer norms).
        gated: gated feed-forward layers.
        rotary: rotary positions.
        fused_qkv: one projection for queries, keys and values.
        parallel: attention and feed-forward layer read the same input.
        saved_by_activation: see `SAVED_BY_ACTIVATION`.
        decoder_layers: of an encoder-decoder, blocks that write.
        decoder_matrices: of its matrices, those of these blocks.
        fp32_powers: whether autocast takes powers in fp32, as on GPUs.
        guessed: whether the shape was guessed from a number of parameters.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    parameters: int
    matrices: int
    tied: bool = True
    rms: bool = True
    gated: bool = True
    rotary: bool = True
    fused_qkv: bool = False
    parallel: bool = False
    saved_by_activation: int = 2
    decoder_layers: int = 0
    decoder_matrices: int = 0
    fp32_powers: bool = True
    guessed: bool = False

    @property
    def head(self) -> int:
        """Elements of the output head."""
        return self.hidden * self.vocabulary

    @property
    def trunk(self) -> int:
        """Parameters without an output head of its own: those of a reward or value model."""
        return self.parameters if self.tied else self.parameters - self.head

    @property
    def scorer(self) -> int:
        """Parameters of a reward model on the trunk."""
        return self.trunk + self.hidden

    @property
    def query_width(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        """Width of all keys of a token, as of all values."""
        return self.kv_heads * self.head_size

    def halves(self) -> tuple[ModelShape, ModelShape]:
        """Return encoder and decoder of an encoder-decoder."""
        reads = replace(
            self,
            layers=self.layers - self.decoder_layers,
            matrices=self.matrices - self.decoder_matrices,
        )
        return reads, replace(self, layers=self.decoder_layers, matrices=self.decoder_matrices)

    def with_layers(self, count: int) -> ModelShape:
        """Return the shape of a model with so many of its blocks."""
        matrices = self.matrices * count // self.layers
        parameters = self.parameters - self.matrices + matrices
        return replace(self, layers=count, matrices=matrices, parameters=parameters)

    def frozen(self) -> ModelShape:
        """Return the shape as one whose norms aren't trained: nothing is kept to do that."""
        return replace(self, rms=False)

    def named(self, name: str) -> ModelShape:
        """Return the shape under another name."""
        return replace(self, name=name)


def shape_of_config(config: Any, *, name: str, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of a transformers configuration.

    Raises:
        ModelError: the configuration is of no transformer that is known.
    """
    text = config.get_text_config()
    try:
        model = _on_meta(config, trust_remote_code=trust_remote_code)
        layers, hidden, heads = (
            int(getattr(text, key))
            for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
    except (ValueError, KeyError, AttributeError, TypeError, ImportError) as error:
        raise ModelError(
            f"{name} is a {config.model_type}, whose size can't be told from its configuration "
            f"({type(error).__name__}: {error}); give it with --size {name}=7B"
        ) from error
    gated = bool(getattr(text, "is_gated_act", text.model_type not in UNGATED))
    widths = (getattr(text, name, None) for name in FEED_FORWARD)
    intermediate = int(next((width for width in widths if width), 4 * hidden))
    written = _decoder_layers(text)
    experts, active = _experts(text)
    if experts > 1:
        intermediate = active * int(getattr(text, "moe_intermediate_size", None) or intermediate)
    activation = str(getattr(text, "hidden_act", None) or getattr(text, "activation_function", ""))
    return ModelShape(
        name=name,
        layers=layers + written,
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or hidden // heads),
        intermediate=intermediate,
        vocabulary=int(text.vocab_size),
        parameters=_count(model),
        matrices=_matrices(model, active / experts, passes=_passes(text)),
        decoder_layers=written,
        decoder_matrices=_matrices(model, 1.0, of="decoder.") if written else 0,
        tied=_is_tied(model),
        rms=hasattr(text, "rms_norm_eps"),
        gated=gated,
        rotary=getattr(text, "rope_parameters", None) is not None,
        fused_qkv=text.model_type in ("gpt2", "gpt_neox", "bloom", "phi3", "falcon"),
        parallel=bool(getattr(text, "use_parallel_residual", False)),
        saved_by_activation=SAVED_BY_ACTIVATION.get(activation, 2),
    )


def _decoder_layers(text: Any) -> int:
    """Return the blocks that write, of an encoder-decoder; 0 of others."""
    if not text.is_encoder_decoder:
        return 0
    names = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
    return int(next(filter(None, (getattr(text, name, None) for name in names))))


def _passes(text: Any) -> int:
    """Return how often a token passes a block's matrices: blocks may share them, as ALBERT's do."""
    groups = getattr(text, "num_hidden_groups", None)
    return int(text.num_hidden_layers) // int(groups) if groups else 1


def shape_of_size(parameters: float, *, name: str, vocabulary: int = 32_000) -> ModelShape:
    """Guess the shape of a Llama-like model from its number of parameters.

    The blocks hold 12 * layers * hidden^2 of them (Kaplan et al. 2020, table 1), and models of many
    sizes are about 100 times as wide as deep (same, figure 5), so that
    hidden = (100 * parameters / 12)^(1/3).
    """
    hidden = max(64, round((100 * parameters / 12) ** (1 / 3) / 64) * 64)
    embedding = min(vocabulary * hidden, int(parameters) // 2)
    vocabulary = max(1, embedding // hidden)
    layers = max(1, round((parameters - embedding) / (12 * hidden**2)))
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=max(1, hidden // 64),
        kv_heads=max(1, hidden // 64),
        head_size=64,
        intermediate=round(8 * hidden / 3),
        vocabulary=vocabulary,
        parameters=int(parameters),
        matrices=int(parameters) - embedding,
        guessed=True,
    )


def _on_meta(config: Any, *, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    loader: Any = AutoModelForCausalLM
    if config.is_encoder_decoder:
        loader = AutoModelForSeq2SeqLM
    elif type(config) not in AutoModelForCausalLM._model_mapping:
        loader = AutoModelForMaskedLM
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            return loader.from_config(config, trust_remote_code=trust_remote_code)
    finally:
        logging.set_verbosity(before)


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


def _experts(text: Any) -> tuple[int, int]:
    """Return the experts of a layer and those that a token passes; 1 and 1 without."""
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        count = getattr(text, key, None)
        if count:
            return int(count), int(getattr(text, "num_experts_per_tok", 1) or 1)
    return 1, 1


def _matrices(model: Any, share: float, *, passes: int = 1, of: str = "") -> int:
    """Return the elements of the blocks' matrices; of experts, the share that a token passes.

    `passes` is how often a token passes those of a group of blocks, `of` a part of the names of
    those that count.
    """
    from torch import nn

    apart = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        apart.add(id(head.weight))
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in apart and of in name:
            again = passes if "_layer_groups." in name else 1
            total += parameter.numel() * again * (share if ".experts." in name else 1.0)
    return round(total)
