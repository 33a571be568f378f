"""Ids that no text has: rows that an embedding was filled up by, and holes in a vocabulary.

They are noted at a model once, when it is loaded with its tokenizer. From then on they are never
sampled, and whoever scores what was sampled leaves them out of the distribution too: the sampler,
a vLLM server, the policy and the reference of PPO, and the KL of an evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.models.load import eos_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEVER = -1e9
"""Logit of what is never sampled; not infinite, which would make an entropy NaN."""


def leave_out_unused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Note at a model the ids that no text of its tokenizer has, and return it.

    An id that the tokenizer can spell counts as used, also where another id spells the same; and so
    does one that ends a response by the model's generation config.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    used = {int(number) for number in tokenizer.get_vocab().values()}
    used.update(eos_ids(tokenizer, model))
    # Beside the weights, but no part of them: it is copied with the model and never saved.
    model.unused_ids = tuple(
        number for number in range(rows) if number not in used and not _spelt(tokenizer, number)
    )
    return model


def _spelt(tokenizer: PreTrainedTokenizerBase, number: int) -> bool:
    try:
        token = tokenizer.convert_ids_to_tokens(number)
    except (IndexError, KeyError, OverflowError, ValueError):
        return False  # a tokenizer in Python that knows no such id
    return token is not None and token != tokenizer.unk_token


def unused_ids(model: Any) -> tuple[int, ...]:
    """Return the ids that were noted at a model; none where nobody has looked."""
    ids: tuple[int, ...] = getattr(model, "unused_ids", ())
    return ids


def without_unused(logits_XV: Tensor, model: Any) -> Tensor:
    """Return logits (..., V) in fp32 without the ids that no text has."""
    unused = unused_ids(model)
    if not unused:
        return logits_XV
    places_U = torch.tensor(unused, device=logits_XV.device)
    return logits_XV.index_fill(-1, places_U, NEVER)
