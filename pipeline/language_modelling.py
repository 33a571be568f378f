"""Language-model batches: what goes into a model, and the summed loss of its next tokens.

Shapes: B sequences of T tokens, vocabulary V. `documents_BT` numbers the document of every token
within its sequence; None where all tokens of a sequence see each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Target that counts for nothing."""


class LmBatch(NamedTuple):
    """Sequences and the token that follows each of their tokens.

    Attributes:
        tokens_BT: ids that go into the model.
        targets_BT: the next ids, `IGNORED` where there is none to predict.
        documents_BT: number of each token's document, None to attend across documents.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None

    def predicted(self) -> int:
        """Return the number of tokens to predict."""
        return int((self.targets_BT != IGNORED).sum())

    def to(self, device: torch.device) -> LmBatch:
        """Return the batch on a device."""
        documents = None if self.documents_BT is None else self.documents_BT.to(device)
        return LmBatch(self.tokens_BT.to(device), self.targets_BT.to(device), documents)

    def rows(self, start: int, stop: int) -> LmBatch:
        """Return some of the sequences."""
        documents = None if self.documents_BT is None else self.documents_BT[start:stop]
        return LmBatch(self.tokens_BT[start:stop], self.targets_BT[start:stop], documents)


def next_token_batch(tokens_BT: Tensor, documents_BT: Tensor | None = None) -> LmBatch:
    """Return a batch in which every token but the last of a sequence predicts the next one.

    Args:
        tokens_BT: ids.
        documents_BT: document numbers to keep documents apart: then the first token of a document
            is not predicted either, since nothing that is seen precedes it.
    """
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    targets_BT[:, :-1] = tokens_BT[:, 1:]
    if documents_BT is not None:
        opens_next_BT = documents_BT[:, 1:] != documents_BT[:, :-1]
        targets_BT[:, :-1].masked_fill_(opens_next_BT, IGNORED)
    return LmBatch(tokens_BT, targets_BT, documents_BT)


def document_inputs(documents_BT: Tensor) -> dict[str, Tensor]:
    """Return the block-diagonal causal mask and the positions that restart with each document.

    Args:
        documents_BT: document numbers; tokens of one document stand side by side.

    Returns:
        `attention_mask` (B, 1, T, T), True where a token is seen, and `position_ids` (B, T).
    """
    length = documents_BT.shape[1]
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    seen_TT = torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    place_T = torch.arange(length, device=documents_BT.device)
    opens_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    opens_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    start_BT = torch.where(opens_BT, place_T, 0).cummax(dim=1).values
    return {"attention_mask": (same_BTT & seen_TT)[:, None], "position_ids": place_T - start_BT}


def next_token_logits(model: Any, batch: LmBatch) -> Tensor:
    """Return the logits (B, T, V) of a causal language model for a batch."""
    extra = {} if batch.documents_BT is None else document_inputs(batch.documents_BT)
    logits: Tensor = model(input_ids=batch.tokens_BT, use_cache=False, **extra).logits
    return logits


def summed_loss(model: Any, batch: LmBatch) -> Tensor:
    """Return the cross-entropy of all tokens to predict, summed, in nats.

    A sum, so that the caller divides by the tokens of the whole step, over all micro-batches and
    processes, and neither changes the loss.
    """
    logits_BTV = next_token_logits(model, batch)
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        batch.targets_BT.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
