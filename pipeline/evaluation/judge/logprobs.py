"""What one checkpoint answers, and how far its answers are from a reference.

Shapes: B rows, L tokens of prompt and response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.records import Prompt, turn_text
from data.text.chat import render_prompt
from pipeline.models.unused_ids import without_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOGITS = 60_000_000
"""Logits computed at a time at most: 240 MB in fp32."""
DOCUMENT_END = "<|endoftext|>"


def plain_prompt(prompt: Prompt) -> str:
    """Return a chat as a base model is given it: the turns as lines, ready for the next line.

    A base model has never seen the tokens of the chat template, so the template would only show
    that they confuse it. Plain text prompts are left as they are.
    """
    if isinstance(prompt, str):
        return prompt
    return "".join(turn_text(turn) + "\n" for turn in prompt)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, plain: bool) -> list[int]:
    """Return the tokens a checkpoint is given for a prompt.

    A chat put plainly starts as documents do in pretraining: after a document end.
    """
    if not plain or isinstance(prompt, str):
        return render_prompt(tokenizer, prompt)
    ids = render_prompt(tokenizer, plain_prompt(prompt))
    return ids if ids[0] in tokenizer.all_special_ids else document_end_ids(tokenizer) + ids


def document_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that ends documents in pretraining, where the tokenizer has one."""
    document_end = tokenizer.get_vocab().get(DOCUMENT_END)
    return [] if document_end is None else [int(document_end)]


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    temperature: float,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> list[float]:
    """Return the log-probability of each response under a model, summed over its tokens.

    Args:
        model: a causal model.
        prompts: tokens of each prompt.
        responses: tokens of each response.
        temperature: divides the logits, as in sampling; 0 (greedy) leaves them.
        batch_size: rows a forward pass at most.
        advance: called with the number of responses that are ready.
    """
    sums = [0.0] * len(prompts)
    model.eval()
    for rows in _batches(prompts, responses, batch_size, vocabulary=model.config.vocab_size):
        batch = [(prompts[i], responses[i]) for i in rows]
        for row, total in zip(rows, _batch_logprobs(model, batch, temperature), strict=True):
            sums[row] = total
        if advance is not None:
            advance(len(rows))
    return sums


def _batches(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], most: int, *, vocabulary: int
) -> Iterator[list[int]]:
    """Yield row numbers, longest first, cut so that the logits of a batch fit the memory."""
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        rows = max(1, min(most, _LOGITS // (lengths[order[start]] * vocabulary)))
        yield order[start : start + rows]
        start += rows


def _batch_logprobs(
    model: PreTrainedModel, batch: Sequence[tuple[list[int], list[int]]], temperature: float
) -> list[float]:
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
    response_mask_BL = response_mask_BL.to(model.device)
    output = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
    logits_BLV: Tensor = output.logits[:, :-1].float()
    if temperature not in (0, 1):
        logits_BLV = logits_BLV / temperature
    logits_BLV = without_unused(logits_BLV, model)
    targets_BL = ids_BL[:, 1:]
    chosen_BL = logits_BLV.gather(2, targets_BL[:, :, None])[:, :, 0]
    logprobs_BL = chosen_BL - logits_BLV.logsumexp(dim=-1)
    totals_B = (logprobs_BL.double() * response_mask_BL[:, 1:]).sum(1)
    return [float(total) for total in totals_B.tolist()]
