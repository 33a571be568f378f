"""Floating-point operations of transformers, as sums of their matrix products.

A product of (m, k) and (k, n) counts 2 m k n. Norms, activations, softmax and the optimiser are
left out, as usual: they are bound by memory (Kaplan et al. 2020, section 2.1; Chowdhery et al.
2022, appendix B). Attention counts its whole matrix, though causal kernels skip half of it, as
papers that report utilisation do.

Shapes: rows of L tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.estimate.model.shapes import ModelShape

ATTENTION_BACKWARD = 2.5
"""Fused attention makes its matrix again in the backward pass: 5 products against 2 (Dao et al.
2022, algorithm 4)."""


@dataclass(frozen=True)
class Rows:
    """Rows of tokens that go through a model, by what their cost follows from.

    Attributes:
        count: rows.
        tokens: tokens of all rows, padding included.
        squares: sum of the squared lengths of the rows.
    """

    count: float
    tokens: float
    squares: float

    @classmethod
    def alike(cls, count: float, length: float) -> Rows:
        """Return rows of one length."""
        return cls(count, count * length, count * length**2)

    def times(self, factor: float) -> Rows:
        """Return so many times these rows."""
        return Rows(self.count * factor, self.tokens * factor, self.squares * factor)

    def __add__(self, other: Rows) -> Rows:
        return Rows(
            self.count + other.count, self.tokens + other.tokens, self.squares + other.squares
        )


def matrix_flops(shape: ModelShape, tokens: float) -> float:
    """Return 2 FLOP an element of the blocks' matrices and token (Kaplan et al. 2020, 2.1)."""
    return 2.0 * shape.matrices * tokens


def attention_flops(shape: ModelShape, squares: float) -> float:
    """Return the FLOPs of Q K^T and A V: 4 * layers * query width * L^2 a row."""
    return 4.0 * shape.layers * shape.query_width * squares


def logit_flops(shape: ModelShape, positions: float) -> float:
    """Return the FLOPs of the output head: 2 H V a position."""
    return 2.0 * shape.head * positions


def forward_flops(shape: ModelShape, rows: Rows, *, positions: float) -> float:
    """Return the FLOPs of a forward pass that makes logits at so many positions."""
    trunk = matrix_flops(shape, rows.tokens) + attention_flops(shape, rows.squares)
    return trunk + logit_flops(shape, positions)


def training_flops(
    shape: ModelShape,
    rows: Rows,
    *,
    positions: float,
    recompute: bool = False,
    recompute_logits: bool = False,
    trained_share: float = 1.0,
) -> float:
    """Return the FLOPs of a forward and a backward pass: three times the forward pass and more.

    Args:
        shape: the model.
        rows: what goes in.
        positions: how many of the tokens get logits.
        recompute: blocks are computed again in the backward pass (gradient checkpointing).
        recompute_logits: so are the logits (made in pieces).
        trained_share: share of the matrices' elements that get a gradient; the gradient that
            passes through them to earlier layers is needed whatever it is.
    """
    again = float(recompute)
    matrices = matrix_flops(shape, rows.tokens) * (2.0 + trained_share + again)
    attention = attention_flops(shape, rows.squares) * (1.0 + ATTENTION_BACKWARD + again)
    head = 2.0 + float(trained_share == 1.0)
    logits = logit_flops(shape, positions) * (head + float(recompute_logits))
    return matrices + attention + logits


def decoding_flops(
    shape: ModelShape, *, rows: float, prompt: float, new: float, answers: int = 1
) -> float:
    """Return the FLOPs of sampling with a cache of keys and values.

    The prompt goes through once and gives one token; each further one is a pass of one token that
    attends to all before it. `rows` responses share a prompt by `answers`, which is computed once.
    """
    prefill = forward_flops(shape, Rows.alike(1, prompt), positions=1)
    steps = max(0.0, new - 1)
    attended = prompt + (steps + 1) / 2
    step = matrix_flops(shape, 1) + attention_flops(shape, attended) + logit_flops(shape, 1)
    return rows * (prefill / answers + steps * step)
