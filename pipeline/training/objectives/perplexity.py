"""Held-out loss, perplexity and bits per byte of a language model.

Perplexity is exp of the mean loss per token, so it compares models of one tokenizer alone; bits
per byte, the loss of a text divided by the bytes it is written in, compares across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from data.errors import ModelError, SourceError
from data.text.tokenizer import tokenize_documents
from pipeline.models.load import context_length as model_context
from pipeline.models.trials import evaluating
from pipeline.training.objectives.causal import IGNORED, LmBatch, summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_LOSS = 700.0
"""Loss whose exponential is still a float."""


def perplexity_figures(nats: float, tokens: float, bytes_: float) -> dict[str, float]:
    """Return loss, perplexity and bits per byte.

    Args:
        nats: summed loss of the predicted tokens.
        tokens: number of predicted tokens.
        bytes_: UTF-8 bytes of the text that these tokens spell.

    >>> perplexity_figures(2 * math.log(8), 2, 3)["bits_per_byte"]
    2.0
    """
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, LARGEST_LOSS)),
        "bits_per_byte": nats / math.log(2) / bytes_ if bytes_ else math.nan,
    }


@torch.inference_mode()
def batches_loss(
    model: Any,
    batches: Iterable[LmBatch],
    *,
    bf16: bool = False,
    advance: Callable[[int], None] | None = None,
) -> tuple[float, int]:
    """Return the summed loss in nats and the number of predicted tokens of some batches.

    Args:
        model: a causal language model; put into evaluation mode meanwhile.
        batches: what it predicts.
        bf16: forward pass in bfloat16.
        advance: told of the sequences done.
    """
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    with evaluating(model):
        for batch in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                nats += float(summed_loss(model, batch.to(device)))
            tokens += batch.predicted()
            if advance is not None:
                advance(len(batch.tokens_BT))
    return nats, tokens


def text_perplexity(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    context_length: int | None = None,
    bf16: bool = False,
    advance: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Judge a model on texts, each read from the start of a document.

    A text is preceded by the token that separates documents, so that its first token is predicted
    too. One longer than the context is cut into windows; nothing is left out. Its end is not
    predicted: whether a document ends is not the text's.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        texts: what it predicts; empty ones are passed over.
        batch_size: sequences of one forward pass.
        context_length: tokens of a window; the model's own when not given.
        bf16: forward pass in bfloat16.
        advance: told of the windows done.

    Returns:
        `loss` in nats a token, `perplexity`, `bits_per_byte`, and the counts `tokens` and `bytes`.

    Raises:
        SourceError: no text holds a token.
        ModelError: the tokenizer has no token to start with.
    """
    judged = [text for text in texts if text]
    if not judged:
        raise SourceError("no held-out text to judge the model by; all are empty")
    first = separator_id(tokenizer)
    limit = context_length or model_context(model) or 1024
    encoded = tokenize_documents(tokenizer, judged)
    windows = [window for ids in encoded for window in _windows([first, *ids], limit)]
    # Rows of a like length side by side; the longest first, so that memory runs out at once.
    windows.sort(key=len, reverse=True)
    groups = (windows[at : at + batch_size] for at in range(0, len(windows), batch_size))
    nats, tokens = batches_loss(
        model, (_padded(group) for group in groups), bf16=bf16, advance=advance
    )
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in judged)
    figures = perplexity_figures(nats, tokens, size)
    return {**figures, "tokens": tokens, "bytes": size}


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that stands between two documents: `<|endoftext|>`, else eos, else bos.

    Raises:
        ModelError: the tokenizer has none of them.
    """
    known = tokenizer.get_added_vocab()
    for candidate in (
        known.get("<|endoftext|>"),
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
    ):
        if candidate is not None:
            return int(candidate)
    raise ModelError(
        f"{tokenizer.name_or_path} has no <|endoftext|>, end-of-sequence or beginning-of-sequence "
        "token to put between documents; add one in a tokenizer stage"
    )


def _windows(ids: list[int], limit: int) -> list[list[int]]:
    """Cut ids into windows that share one token, so that each but the first is predicted once."""
    return [ids[at : at + limit] for at in range(0, max(len(ids) - 1, 1), limit - 1)]


def _padded(group: list[list[int]]) -> LmBatch:
    # Padding stands on the right, where causal attention never looks: it needs no mask.
    length = max(len(window) for window in group)
    tokens_BT = torch.zeros(len(group), length, dtype=torch.long)
    targets_BT = torch.full((len(group), length), IGNORED)
    for row, window in enumerate(group):
        tokens_BT[row, : len(window)] = torch.tensor(window)
        targets_BT[row, : len(window) - 1] = torch.tensor(window[1:])
    return LmBatch(tokens_BT, targets_BT)
