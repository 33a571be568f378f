"""How likely a checkpoint finds answers, and so how far it is from a reference.

Shapes: B rows, L tokens of prompt and response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.models.batches import batches_by_length
from pipeline.models.seq2seq import decoder_opening, is_encoder_decoder, pair_batch
from pipeline.models.unused_ids import without_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    temperature: float,
    batch_size: int,
    own: Sequence[list[bool] | None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[float]:
    """Return the log-probability of each response under a model, summed over its tokens.

    Args:
        model: a policy.
        prompts: tokens of each prompt.
        responses: tokens of each response.
        temperature: divides the logits, as in sampling; 0 (greedy) leaves them.
        batch_size: rows a forward pass at most.
        own: which tokens of each response count; all where it is None.
        advance: called with the number of responses that are ready.
    """
    sums = [0.0] * len(prompts)
    model.eval()
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    for rows in batches_by_length(lengths, batch_size, vocabulary=model.config.vocab_size):
        batch = [(prompts[i], responses[i]) for i in rows]
        counted = [own[i] for i in rows] if own else [None] * len(rows)
        totals = _batch_logprobs(model, batch, temperature, counted)
        for row, total in zip(rows, totals, strict=True):
            sums[row] = total
        if advance is not None:
            advance(len(rows))
    return sums


def _batch_logprobs(
    model: PreTrainedModel,
    batch: Sequence[tuple[list[int], list[int]]],
    temperature: float,
    own: Sequence[list[bool] | None],
) -> list[float]:
    if is_encoder_decoder(model):
        prompts, responses = zip(*batch, strict=True)
        pairs = pair_batch(prompts, responses, opening=decoder_opening(model), pad_token_id=0)
        given = {name: part.to(model.device) for name, part in pairs.inputs.items()}
        logits_BTV = model(**given, use_cache=False).logits
        mask_BT = _counted(pairs.response_mask_BT, own)
        return _totals(model, logits_BTV, pairs.targets_BT, mask_BT, temperature)
    longest = max(len(prompt) + len(response) for prompt, response in batch)
    ids_BL = torch.zeros((len(batch), longest), dtype=torch.long)
    mask_BL = torch.zeros((len(batch), longest), dtype=torch.long)
    response_mask_BL = torch.zeros((len(batch), longest), dtype=torch.bool)
    for row, (prompt, response) in enumerate(batch):
        size = len(prompt) + len(response)
        ids_BL[row, :size] = torch.tensor([*prompt, *response])
        mask_BL[row, :size] = 1
        response_mask_BL[row, len(prompt) : size] = True
    ids_BL, mask_BL = ids_BL.to(model.device), mask_BL.to(model.device)
    output = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
    mask_BL = _counted(response_mask_BL[:, 1:], own)
    return _totals(model, output.logits[:, :-1], ids_BL[:, 1:], mask_BL, temperature)


def _counted(mask_BT: Tensor, own: Sequence[list[bool] | None]) -> Tensor:
    """Leave those tokens of responses out of their mask that don't count."""
    for row, counts in enumerate(own):
        if counts is not None:
            places = mask_BT[row].nonzero()[:, 0]
            mask_BT[row, places[~torch.tensor(counts)]] = False
    return mask_BT


def _totals(
    model: PreTrainedModel,
    logits_BLV: Tensor,
    targets_BL: Tensor,
    response_mask_BL: Tensor,
    temperature: float,
) -> list[float]:
    """Return the summed log-probability of each row's response."""
    logits_BLV, targets_BL = logits_BLV.float(), targets_BL.to(logits_BLV.device)
    if temperature not in (0, 1):
        logits_BLV = logits_BLV / temperature
    logits_BLV = without_unused(logits_BLV, model)
    chosen_BL = logits_BLV.gather(2, targets_BL[:, :, None])[:, :, 0]
    logprobs_BL = chosen_BL - logits_BLV.logsumexp(dim=-1)
    totals_B = (logprobs_BL.double() * response_mask_BL.to(logprobs_BL.device)).sum(1)
    return [float(total) for total in totals_B.tolist()]
