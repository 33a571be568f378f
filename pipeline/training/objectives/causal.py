"""Language-model batches: what goes into a model, and the summed loss of its next tokens.

Shapes: B sequences of T tokens, vocabulary V. `documents_BT` numbers the document of every token
within its sequence; None where all tokens of a sequence see each other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.trials import keeps_apart, trial_sizes
from pipeline.training.objectives.rows import IGNORED, on_tensors
from reward.network.tree_attention import longest_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Documents(NamedTuple):
    """How a model is told which tokens of a row belong together.

    Attributes:
        form: "positions" that restart with each document, of which transformers makes a mask for
            every layer, of whatever kind it is; beside them a mask for all layers, "boolean" or
            "additive"; or an additive one for each kind of layer ("layers").
        window: how far a layer with a sliding window looks back, for a mask of its own.
    """

    form: Literal["positions", "boolean", "additive", "layers"] = "positions"
    window: int | None = None


BY_POSITIONS = Documents()


class LmBatch(NamedTuple):
    """Sequences and the token that follows each of their tokens.

    Attributes:
        tokens_BT: ids that go into the model.
        targets_BT: the next ids, `IGNORED` where there is none to predict.
        documents_BT: number of each token's document, None to attend across documents.
        apart: how the model is told of them.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None
    apart: Documents = BY_POSITIONS

    def predicted(self) -> int:
        """Return the number of tokens to predict."""
        return int((self.targets_BT != IGNORED).sum())

    def learned(self) -> int:
        """Return the number of tokens that speed is told by: those to predict."""
        return self.predicted()

    def to(self, device: torch.device) -> LmBatch:
        """Return the batch on a device."""
        return on_tensors(self, lambda part: part.to(device))

    def rows(self, start: int, stop: int) -> LmBatch:
        """Return some of the sequences."""
        return on_tensors(self, lambda part: part[start:stop])


def next_token_batch(
    tokens_BT: Tensor, documents_BT: Tensor | None = None, apart: Documents = BY_POSITIONS
) -> LmBatch:
    """Return a batch in which every token but the last of a sequence predicts the next one.

    Args:
        tokens_BT: ids.
        documents_BT: document numbers to keep documents apart: then the first token of a document
            is not predicted either, since nothing that is seen precedes it.
        apart: how the model is told of them.
    """
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    targets_BT[:, :-1] = tokens_BT[:, 1:]
    if documents_BT is not None:
        opens_next_BT = documents_BT[:, 1:] != documents_BT[:, :-1]
        targets_BT[:, :-1].masked_fill_(opens_next_BT, IGNORED)
    return LmBatch(tokens_BT, targets_BT, documents_BT, apart)


def document_inputs(
    documents_BT: Tensor, apart: Documents, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Return what keeps documents apart, and makes each of them causal.

    Args:
        documents_BT: document numbers; tokens of one document stand side by side.
        apart: in which form.
        dtype: of a mask that is added.

    Returns:
        `position_ids` (B, T), and where the form has one `attention_mask` (B, 1, T, T): True, or
        0 where it is added, where a token is seen.
    """
    length = documents_BT.shape[1]
    place_T = torch.arange(length, device=documents_BT.device)
    # Where each token's document begins: the last place up to here at which the number changes.
    opens_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    opens_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    start_BT = torch.where(opens_BT, place_T, 0).cummax(dim=1).values
    inputs: dict[str, Any] = {"position_ids": place_T - start_BT}
    if apart.form == "positions":
        return inputs
    back_TT = place_T[:, None] - place_T  # how far token j stands before token i; < 0 is ahead
    seen_B1TT = ((start_BT[:, :, None] == start_BT[:, None, :]) & (back_TT >= 0))[:, None]
    if apart.form == "boolean":
        return inputs | {"attention_mask": seen_B1TT}
    full_B1TT = _added(seen_B1TT, dtype)
    if apart.form == "additive":
        return inputs | {"attention_mask": full_B1TT}
    near_B1TT = (
        full_B1TT if apart.window is None else _added(seen_B1TT & (back_TT < apart.window), dtype)
    )
    return inputs | {
        "attention_mask": {"full_attention": full_B1TT, "sliding_attention": near_B1TT}
    }


def _added(seen_B1TT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add to scores; not infinite, which some layers clamp to NaN."""
    zeros = torch.zeros(seen_B1TT.shape, dtype=dtype, device=seen_B1TT.device)
    return zeros.masked_fill_(~seen_B1TT, torch.finfo(dtype).min)


def find_documents(model: PreTrainedModel, length: int) -> Documents | None:
    """Find the form in which a model can be told of documents, by a trial of each.

    A mask takes the place of the one that a sliding window makes, so that one for all layers
    serves rows alone that are no longer than the window. `length` is the tokens of a row at most;
    None is returned where documents see each other in every form.
    """
    window = longest_sequence(model.config)
    forms = [BY_POSITIONS]
    if window is None or window >= length:
        forms += [Documents("boolean"), Documents("additive")]
    forms.append(Documents("layers", window))
    sizes = trial_sizes(model, length)
    for form in forms:
        if keeps_apart(model, sizes, partial(_batch_inputs, model, form)):
            return form
    return None


def _batch_inputs(
    model: Any, apart: Documents, tokens_BT: Tensor, documents_BT: Tensor
) -> dict[str, Any]:
    device = tokens_BT.device.type
    low = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if low else next(model.parameters()).dtype
    return {"input_ids": tokens_BT, **document_inputs(documents_BT, apart, dtype)}


def next_token_logits(model: Any, batch: LmBatch) -> Tensor:
    """Return the logits (B, T, V) of a causal language model for a batch."""
    inputs: dict[str, Any] = {"input_ids": batch.tokens_BT}
    if batch.documents_BT is not None:
        inputs = _batch_inputs(model, batch.apart, batch.tokens_BT, batch.documents_BT)
    logits: Tensor = model(**inputs, use_cache=False).logits
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
