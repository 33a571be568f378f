"""Held-out loss, perplexity and bits per byte of a language model.

Perplexity is exp of the mean loss per token, so it compares models of one tokenizer alone; bits
per byte, the loss of a text divided by the bytes it is written in, compares across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from data.errors import ModelError, SourceError
from data.text.chat import front_ids
from data.text.tokenizer import tokenize_documents
from pipeline.models.batches import batches_by_length
from pipeline.models.load import context_length as model_context
from pipeline.models.trials import evaluating
from pipeline.training.objectives.causal import (
    LmBatch,
    next_token_logits,
    summed_loss,
)
from pipeline.training.objectives.rows import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_LOSS = 700.0
"""Loss whose exponential is still a float."""


def perplexity(loss: float) -> dict[str, float]:
    """Return a mean loss in nats, and its perplexity."""
    return {"loss": loss, "perplexity": math.exp(min(loss, LARGEST_LOSS))}


def perplexity_figures(nats: float, tokens: float, bytes_: float) -> dict[str, float]:
    """Return loss, perplexity and bits per byte.

    Args:
        nats: summed loss of the predicted tokens.
        tokens: number of predicted tokens.
        bytes_: UTF-8 bytes of the text that was predicted.

    >>> perplexity_figures(2 * math.log(8), 2, 3)["bits_per_byte"]
    2.0
    """
    return {
        **perplexity(nats / tokens),
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


class TextLoss(NamedTuple):
    """How well a model predicts a text.

    Attributes:
        nats: summed loss of its tokens.
        tokens: that were predicted.
        bytes: of the text as it is given, in UTF-8, whatever its tokens spell.
        given_back: whether its tokens spell it; a tokenizer that drops characters spares its model
            their loss.
    """

    nats: float
    tokens: int
    bytes: int
    given_back: bool


class _Window(NamedTuple):
    """Tokens of one text that fit the context, the first `known` of which are not predicted."""

    text: int
    ids: list[int]
    known: int


@torch.inference_mode()
def text_losses(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
) -> list[TextLoss]:
    """Judge a model on texts, each read from its start.

    A text is preceded by what the tokenizer puts in front of every text, such as bos, else by the
    token that separates documents, so that its first token is predicted too. One longer than the
    context is cut into windows that share a token; nothing is left out. Its end is not predicted:
    whether a document ends is not the text's.

    Args:
        model: a causal language model; put into evaluation mode meanwhile.
        tokenizer: its tokenizer.
        texts: what it predicts; an empty one has no loss and no token.
        batch_size: sequences of one forward pass at most.
        advance: told of the windows done.

    Raises:
        SourceError: no text holds a token.
        ModelError: the tokenizer has no token to start with.
    """
    encoded = [*tokenize_documents(tokenizer, texts)]
    if not any(encoded):
        raise SourceError("no text to judge the model by; all are empty")
    front = front_ids(tokenizer) or [separator_id(tokenizer)]
    limit = model_context(model) or 1024
    windows = [
        window
        for place, ids in enumerate(encoded)
        if ids
        for window in _windows(place, front, ids, limit)
    ]
    nats = [0.0] * len(texts)
    device = next(model.parameters()).device
    with evaluating(model):
        lengths = [len(window.ids) for window in windows]
        for places in batches_by_length(lengths, batch_size, vocabulary=len(tokenizer)):
            group = [windows[place] for place in places]
            batch = _padded(group).to(device)
            for window, loss in zip(group, _row_losses(model, batch), strict=True):
                nats[window.text] += loss
            if advance is not None:
                advance(len(group))
    return [
        TextLoss(
            nats[place],
            len(ids),
            len(text.encode("utf-8", "surrogatepass")),
            _spelled(tokenizer, ids).lstrip() == text.lstrip(),  # some put a space in front
        )
        for place, (text, ids) in enumerate(zip(texts, encoded, strict=True))
    ]


def _row_losses(model: Any, batch: LmBatch) -> list[float]:
    """Return the loss of each sequence in nats."""
    logits_BTV = next_token_logits(model, batch).float()
    losses_BT = F.cross_entropy(
        logits_BTV.transpose(1, 2), batch.targets_BT, ignore_index=IGNORED, reduction="none"
    )
    return [float(loss) for loss in losses_BT.double().sum(1).tolist()]


def _spelled(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


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


def _windows(place: int, front: list[int], ids: list[int], limit: int) -> Iterator[_Window]:
    """Cut a text into windows that share one token, so that each token is predicted once."""
    whole = front + ids
    yield _Window(place, whole[:limit], len(front))
    for at in range(limit - 1, len(whole) - 1, limit - 1):
        yield _Window(place, whole[at : at + limit], 1)


def _padded(group: Sequence[_Window]) -> LmBatch:
    # Padding stands on the right, where causal attention never looks: it needs no mask.
    length = max(len(window.ids) for window in group)
    tokens_BT = torch.zeros(len(group), length, dtype=torch.long)
    targets_BT = torch.full((len(group), length), IGNORED)
    for row, (_, ids, known) in enumerate(group):
        tokens_BT[row, : len(ids)] = torch.tensor(ids)
        targets_BT[row, known - 1 : len(ids) - 1] = torch.tensor(ids[known:])
    return LmBatch(tokens_BT, targets_BT)
