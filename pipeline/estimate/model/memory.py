"""Bytes of training and sampling, by component.

What is here is what our stages do: fp32 master weights and Adam; products in bf16 under autocast
where the hardware has them; attention by `scaled_dot_product_attention`, which keeps no attention
matrix; logits at response positions alone and in pieces in PPO. So the formulas of Korthikanti et
al. 2022 (s b h (34 + 5 a s / h) a layer, section 4.1), which are of fp16 weights, dropout masks
and a kept attention matrix, are worked out anew below, tensor by tensor, for the layers as
transformers writes them. Rajbhandari et al. 2020 (ZeRO, section 3) name the rest: weights,
gradients and Adam's two moments, 4 + 4 + 8 bytes a parameter in fp32.

Shapes: rows of L tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math

from pipeline.estimate.model.shapes import ModelShape
from pipeline.estimate.model.sources import Tree

FP32 = 4
BF16 = 2
ADAM = 2 * FP32
"""Adam's two moments of a parameter (Kingma and Ba 2015)."""
LOGITS_IN_LOSS = 3
"""fp32 tensors of the logits' size alive in the backward pass of cross-entropy: the kept
log-probabilities, their gradient, and the gradient of the logits."""
SCORED_TOKENS, SCORED_COLUMNS = 4096, 32_768
"""A piece of TRL's head for log-probabilities: tokens, and words of the vocabulary."""
SCORED_COPIES = 8.25
"""fp32 tensors of a piece's size alive in its backward pass by torch's operations: the piece, its
logits, scaled, as log-probabilities and probabilities, the gradient, and what is added to it."""
LOGITS_IN_POLICY = 2
"""Tensors of the logits' size and precision in the backward pass of PPO's log-probability: the
logits and their gradient."""
LOGITS_KEPT = 1
"""The logits that the policy's forward pass keeps."""
LOGITS_WITH_ENTROPY = 4
"""fp32 tensors of the logits' size where an entropy bonus needs gradients: log-probabilities,
probabilities and two gradients."""
LOGITS_LOOKED_AT = 4
"""The same without gradients, entropy included: logits, log-probabilities, probabilities and
their product."""
LOGITS_DRAWN = 7
"""The same of a draw: logits, log-probabilities, probabilities, and in double the probabilities
and their running sum."""


def activation_bytes(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    bf16: bool,
    masked: bool = False,
    checkpointed: bool = False,
) -> float:
    """Return the bytes that the blocks and the last norm keep for the backward pass.

    Args:
        shape: the model.
        rows: of a micro-batch.
        length: tokens of the longest row.
        bf16: products under bf16 autocast.
        masked: an explicit mask goes along, since the rows' lengths differ; grouped keys and
            values are then repeated and each block keeps the mask as numbers.
        checkpointed: each block keeps its input alone (Chen et al. 2016, section 4).
    """
    tokens = rows * length
    last = tokens * _norm_bytes(shape, bf16=bf16, readers=1)
    block = block_bytes(shape, rows=rows, length=length, bf16=bf16, masked=masked)
    return shape.layers * (tokens * FP32 * shape.hidden if checkpointed else block) + last


def block_bytes(
    shape: ModelShape, *, rows: int, length: int, bf16: bool, masked: bool = False
) -> float:
    """Return the bytes that one block keeps, which checkpointing makes again one at a time."""
    block = rows * length * _block_bytes(shape, bf16=bf16, masked=masked)
    return block + rows * length**2 * (BF16 if bf16 else FP32) * masked


def tree_bytes(shape: ModelShape, tree: Tree, *, trees: int, bf16: bool) -> float:
    """Return the bytes that one block keeps of packed trees, the mask apart.

    Norms and the feed-forward layer see packed tokens. Attention keeps what it takes them apart
    into: prefixes, and branches padded to the widest, whose keys and values stand behind a copy of
    their prefix's; and its result, packed again. All trees count as the largest of a micro-batch.
    """
    width = BF16 if bf16 else FP32
    tokens, prefixes = trees * tree.tokens, trees * tree.prefix
    branches = trees * tree.branches
    queries = prefixes + branches * tree.widest
    keys = branches * (tree.prefix + tree.widest)
    elements = shape.query_width * (2 * queries + 2 * keys + tokens)
    elements += 2 * shape.key_width * prefixes
    packed = _norms_bytes(shape, bf16=bf16) + _feed_forward_bytes(shape, bf16=bf16)
    return tokens * packed + width * elements + FP32 * shape.heads * queries


def tree_mask_bytes(tree: Tree, *, trees: int, bf16: bool) -> float:
    """Return the bytes of the mask of packed trees, as truth values and as numbers, all layers'."""
    pairs = trees * tree.branches * tree.widest * (tree.prefix + tree.widest)
    return pairs * (1 + (BF16 if bf16 else FP32))


def tree_activation_bytes(
    shape: ModelShape, tree: Tree, *, trees: int, bf16: bool, checkpointed: bool
) -> float:
    """Return what the blocks and the last norm keep of packed trees for the backward pass."""
    tokens = trees * tree.tokens
    last = tokens * _norm_bytes(shape, bf16=bf16, readers=1)
    block = tree_bytes(shape, tree, trees=trees, bf16=bf16)
    kept = shape.layers * (tokens * FP32 * shape.hidden if checkpointed else block)
    return kept + last + tree_mask_bytes(tree, trees=trees, bf16=bf16)


def _norm_bytes(shape: ModelShape, *, bf16: bool, readers: int) -> float:
    """Return what a norm keeps for a token: its input, what it scales, and what is read of it."""
    # An RMS norm written out in Python keeps the scaled input too, a layer norm makes it again. In
    # bf16 each product that reads the result makes a bf16 copy of its own.
    kept = FP32 * shape.hidden * (2 if shape.rms else 1)
    return kept + shape.hidden * (BF16 * readers if bf16 else FP32)


def _norms_bytes(shape: ModelShape, *, bf16: bool) -> float:
    """Return what both norms of a block keep for a token."""
    norms = _norm_bytes(shape, bf16=bf16, readers=1 if shape.fused_qkv else 3)
    norms += _norm_bytes(shape, bf16=bf16, readers=2 if shape.gated else 1)
    if shape.parallel:  # both norms read the same input
        norms -= FP32 * shape.hidden
    return norms


def _block_bytes(shape: ModelShape, *, bf16: bool, masked: bool) -> float:
    """Return what a block keeps for a token."""
    width = BF16 if bf16 else FP32
    return (
        _norms_bytes(shape, bf16=bf16)
        + width * _attention_elements(shape, masked=masked)
        + (FP32 * shape.heads + _feed_forward_bytes(shape, bf16=bf16))
    )


def _attention_elements(shape: ModelShape, *, masked: bool) -> float:
    """Return the elements of queries, keys, values and output that a token keeps in a block."""
    keys = shape.query_width if masked else shape.key_width
    elements = 2.0 * shape.query_width + 2.0 * keys
    if shape.fused_qkv and shape.rotary:
        # Values are a view of the fused projection, which keeps all of it, and rotated queries
        # and keys are new.
        elements += shape.query_width + shape.key_width
    return elements


def _feed_forward_bytes(shape: ModelShape, *, bf16: bool) -> float:
    width = BF16 if bf16 else FP32
    if shape.gated:  # gate, activated gate, up, product
        return 4.0 * width * shape.intermediate
    if bf16 and shape.saved_by_activation == 5 and shape.fp32_powers:
        # `gelu_new` takes a power, and what follows from it is in its precision.
        return (3.0 * FP32 + 2.0 * BF16) * shape.intermediate
    return float(width * shape.saved_by_activation * shape.intermediate)


def working_bytes(shape: ModelShape, *, tokens: float, bf16: bool) -> float:
    """Return the bytes of a forward pass without gradients: one block's tensors.

    The residual stream and its normed copy, and the widest moment of the feed-forward layer
    (gate, up and their product) or of attention.
    """
    width = BF16 if bf16 else FP32
    inner = (3 if shape.gated else 2) * shape.intermediate
    attention = 2 * shape.query_width + 2 * shape.key_width
    return tokens * (3.0 * FP32 * shape.hidden + width * max(inner, attention))


def cast_bytes(shape: ModelShape, *, bf16: bool, head: bool = True) -> float:
    """Return the bytes of the bf16 copies of fp32 matrices that autocast keeps."""
    return float(BF16 * (shape.matrices + (shape.head if head else 0))) if bf16 else 0.0


def cache_bytes(shape: ModelShape, *, rows: int, tokens: int, key: int, value: int) -> float:
    """Return the bytes of the keys and values of a decode batch, reserved for its whole length.

    `key` and `value` are bytes of an element: under autocast rotary keys are fp32.
    """
    return float(shape.layers * rows * tokens * shape.key_width * (key + value))


def scored_bytes(shape: ModelShape, *, positions: float, on_cpu: bool, bf16: bool) -> float:
    """Return the bytes of TRL's head that makes log-probabilities in pieces, in its backward pass.

    On an accelerator one buffer, of so many columns whatever the vocabulary; on a processor, which
    gives memory to those alone that are written to, what torch's operations keep beside it.
    """
    tokens = min(positions, SCORED_TOKENS)
    if not on_cpu:
        return tokens * SCORED_COLUMNS * (BF16 if bf16 else FP32)
    copies = SCORED_COPIES - (0.5 if bf16 else 0.0)
    return tokens * min(shape.vocabulary, SCORED_COLUMNS) * FP32 * copies


def logit_bytes(shape: ModelShape, *, positions: float, copies: float, width: int = FP32) -> float:
    """Return the bytes of the tensors of the logits' size that live at once."""
    return width * copies * positions * shape.vocabulary


def adapter_parameters(shape: ModelShape, *, rank: int) -> int:
    """Return the parameters of LoRA on all linear layers of the blocks.

    Hu et al. 2021, section 4.1: two matrices of rank * inputs and rank * outputs a layer.
    """
    attention = 4 * shape.hidden + 2 * shape.query_width + 2 * shape.key_width
    if shape.fused_qkv:
        attention -= 2 * shape.hidden
    feed_forward = (3 if shape.gated else 2) * (shape.hidden + shape.intermediate)
    return shape.layers * rank * (attention + feed_forward)


def gradient_bytes(parameters: float, *, buckets: bool) -> float:
    """Return the bytes of fp32 gradients, and of the buckets in which DDP sums them."""
    # Li et al. 2020 (PyTorch Distributed), section 3.2.3: buckets are copies unless gradients are
    # views of them, which they are not by default.
    return FP32 * parameters * (2.0 if buckets else 1.0)


def gathered_bytes(shape: ModelShape, *, bf16: bool) -> float:
    """Return the bytes of whole weights that a fully sharded model gathers at a time."""
    # FSDP (Zhao et al. 2023, section 3) holds the layer that is computed and the next; embedding
    # and head are one more unit.
    layer = shape.matrices / shape.layers
    return (BF16 if bf16 else FP32) * (2.0 * layer + shape.head)


def decoding_memory(
    shape: ModelShape,
    *,
    responses: float,
    batch: int,
    prompt: int,
    new: int,
    key: int,
    value: int,
    bf16: bool,
    answers: int = 1,
) -> dict[str, float]:
    """Return the bytes of sampling beside the weights.

    Args:
        shape: the model.
        responses: all that are sampled by one process.
        batch: most of them decoded together.
        prompt: tokens of the longest prompt.
        new: most tokens of a response.
        key: bytes of an element of a key.
        value: bytes of an element of a value.
        bf16: products in bf16.
        answers: responses to each prompt, which is computed once for all of them.
    """
    rows = min(batch, round(responses))
    # Where responses wait for others to end, there is room for two of the longest in a row.
    tokens = (prompt + new) * (2 if round(responses) > batch else 1)
    prompts = math.ceil(rows / answers)
    return {
        "KV cache": cache_bytes(shape, rows=rows, tokens=tokens, key=key, value=value),
        "activations": working_bytes(shape, tokens=prompts * prompt, bf16=bf16),
        "logits": logit_bytes(shape, positions=rows, copies=LOGITS_DRAWN),
    }
