"""Finds by a trial what a model may remember while it is sampled from.

Rows of a batch share a cache, short prompts are padded on the left, rows leave and join, and what
prompts begin alike with is computed before them. An
architecture may take no notice of the cache it is given, read the padding into its state, or keep
a cache of another kind. So a few rows are decoded with tokens that are fixed beforehand, and the
logits are compared with those that each row has by itself, without a cache: exact, or the next
simpler memory is tried. One row is about as long as those that come later, since windows and the
like do nothing in shorter ones: a model is tried once, and again for rows twice as long. Its
weights may change after that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from data.errors import ModelError
from pipeline.generation.decoder import Memory, last_logits
from pipeline.generation.seq2seq import decoder_for
from pipeline.models.load import context_length
from pipeline.models.seq2seq import decoder_opening, is_encoder_decoder, pair_batch
from pipeline.models.trials import OBJECTIONS, gap, on_trial, trial_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MEMORIES: tuple[Memory, ...] = ("window", "own", "none")
_FOUND: WeakKeyDictionary[PreTrainedModel, tuple[int, Memory]] = WeakKeyDictionary()
"""Lengths up to which models were tried, and what was found."""
_PROMPTS, _LIMITS, _SLOTS = (5, 4, 3, 2, 2), (4, 2, 2, 3, 2), 2
"""Rows of unequal lengths, more than are decoded at a time, of which one joins another."""
_FIRSTS = (0, 0, 3, 6, 9)
"""Where the ids of each begin to be others: the first two begin alike."""

_Row = tuple[list[int], int]
"""Token ids, and how many of them are the prompt."""


def fitting_memory(
    model: PreTrainedModel, *, length: int, say: Callable[[str], None] | None = None
) -> Memory:
    """Return what gives a model's own logits when it is sampled from; the trial is kept.

    Args:
        model: a policy, unwrapped.
        length: tokens of the longest row, its response included.
        say: told where it is sampled from without a cache.

    Raises:
        ModelError: no memory does.
    """
    tried, before = _FOUND.get(model, (0, None))
    if tried < length:
        reach = 1 << (length - 1).bit_length()
        memory = _try(model, reach)
        if memory is None:
            raise ModelError(
                f"{_name(model)} can't be sampled from: its logits "
                "for a row by itself are not those it gives in a batch, neither with its cache nor "
                "without one; sample from another language model"
            )
        if memory == "none" != before and say is not None:
            say(
                f"{type(model).__name__} gives other logits with a cache than without one: it is "
                "sampled from without, which is exact and slower"
            )
        _FOUND[model] = reach, memory
    return _FOUND[model][1]


def _try(model: PreTrainedModel, reach: int) -> Memory | None:
    """Return the first memory with which logits are as without any, None when none is so."""
    room = context_length(model)
    most = max(_LIMITS)
    sizes = [size if room is None else min(size, room - most) for size in _PROMPTS]
    if min(sizes) < 1:
        return _MEMORIES[0]  # a context of four tokens
    limits, firsts = list(_LIMITS), list(_FIRSTS)
    # Windows tend to be powers of two, which this row crosses while it is decoded.
    long = reach - most // 2 if room is None else min(reach - most // 2, room - most)
    if long > sizes[0]:
        sizes, limits, firsts = [long, *sizes], [most, *limits], [12, *firsts]
    rows = [
        (trial_ids(model, size + limit, first=first), size)
        for size, limit, first in zip(sizes, limits, firsts, strict=True)
    ]
    with on_trial(model) as exact:
        try:
            wanted, blind = _alone(model, rows)
        except OBJECTIONS as error:
            raise ModelError(
                f"{_name(model)} fails on a few tokens ({type(error).__name__}: {error}); sample "
                "from another language model"
            ) from error
        # Beside what rounds, little of what the tokens before the last one do to the logits.
        limit = 3e-5 + 1e-4 * gap(blind, wanted) if exact else 0.15
        # An encoder-decoder's cache is always its own.
        for memory in _MEMORIES[1:] if is_encoder_decoder(model) else _MEMORIES:
            try:
                logits_NV = _decoded(model, rows, memory)
            except OBJECTIONS:
                continue
            if gap(logits_NV, wanted) < limit:
                return memory
    return None


def _name(model: PreTrainedModel) -> str:
    return f"{model.name_or_path or 'the model'}, a {type(model).__name__},"


def _alone(model: PreTrainedModel, rows: list[_Row]) -> tuple[Tensor, Tensor]:
    """Return the logits (N, V) from which the tokens after the prompts would be drawn.

    First those of each row by itself, then those of the last token without any before it; of an
    encoder-decoder those without what its encoder reads.
    """
    if is_encoder_decoder(model):
        return _pairs(model, rows, read=None), _pairs(model, rows, read=1)
    wanted = []
    for ids, size in rows:
        ids_1S = torch.tensor([ids], device=model.device)
        asked = last_logits(model, len(ids) - size + 1)
        logits_1SV = model(input_ids=ids_1S, use_cache=False, **asked).logits
        wanted.append(logits_1SV[0, size - len(ids) - 1 : -1])
    last = [i for ids, size in rows for i in ids[size - 1 : -1]]
    last_N1 = torch.tensor(last, device=model.device)[:, None]
    blind_NV: Tensor = model(input_ids=last_N1, use_cache=False).logits[:, 0]
    return torch.cat(wanted).float(), blind_NV.float()


def _pairs(model: PreTrainedModel, rows: list[_Row], *, read: int | None) -> Tensor:
    """Return an encoder-decoder's logits (N, V), its encoder reading so many tokens of a prompt."""
    found, opening = [], decoder_opening(model)
    for ids, size in rows:
        batch = pair_batch([ids[:size][:read]], [ids[size:]], opening=opening, pad_token_id=0)
        given = {name: part.to(model.device) for name, part in batch.inputs.items()}
        logits_1TV = model(**given, use_cache=False).logits
        found.append(logits_1TV[batch.response_mask_BT.to(model.device)])
    return torch.cat(found).float()


def _decoded(model: PreTrainedModel, rows: list[_Row], memory: Memory) -> Tensor:
    """Return the first as the decoder gives them, when these tokens are drawn."""
    drawn: list[list[Tensor]] = [[] for _ in rows]

    def draw(logits_BV: Tensor, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
        tokens = []
        # A row's number names it, in place of a random one.
        for row, logits_V in zip(numbers_B.long().tolist(), logits_BV, strict=True):
            ids, size = rows[row]
            tokens.append(ids[size + len(drawn[row])])
            drawn[row].append(logits_V)
        return torch.tensor(tokens), torch.zeros(len(tokens))

    decoder = decoder_for(model)(
        model,
        [ids[:size] for ids, size in rows],
        limits=[len(ids) - size for ids, size in rows],
        draw=draw,
        uniforms_NT=torch.arange(len(rows))[:, None].expand(-1, max(_LIMITS)),
        eos_token_ids=(),
        pad_token_id=getattr(model.config.get_text_config(), "pad_token_id", None) or 0,
        slots=_SLOTS,
        memory=memory,
        least_shared=2,
    )
    while not decoder.done:
        decoder.step()
    return torch.stack([logits_V for row in drawn for logits_V in row])
