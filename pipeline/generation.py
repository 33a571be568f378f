"""Sampling from a causal model: an own decode loop over transformers' models.

Against `transformers`' `generate`: rows that have ended leave the decode batch, so that short
answers do not pay for long ones; the keys and values are written into memory taken once, instead
of a new tensor a token; the log-probability of every sampled token comes along; and the random
numbers of a prompt depend on its place among the prompts alone, so that neither the batch size
nor what else is in the batch changes what is sampled. In fp32 greedy tokens are the same.

Shapes: B rows in the decode batch, N prompts, P prompt tokens with padding, T new tokens,
V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from data.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPACT_SHARE = 0.9
"""The batch is compacted when at most this share of its rows still runs."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: most tokens of a response, its end-of-sequence token included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among so many of the likeliest tokens; 0 draws among all.
        top_p: draw among the likeliest tokens whose probabilities reach this sum.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Sample:
    """A sampled response.

    Attributes:
        token_ids: its tokens; the end-of-sequence token is the last when it ended.
        ended: whether it ended by itself.
        logprobs: log-probability of each token under the temperature-scaled distribution over
            the whole vocabulary, whatever top-k and top-p; unscaled when the temperature is 0.
    """

    token_ids: list[int]
    ended: bool
    logprobs: list[float]


def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    generator: torch.Generator,
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
) -> list[Sample]:
    """Sample one response to each prompt.

    A response also stops where the model's context is full.

    Args:
        model: a causal model of transformers, unwrapped.
        prompts: token ids of each prompt.
        sampling: how tokens are drawn.
        eos_token_ids: tokens that end a response.
        pad_token_id: fills short prompts from the left; never attended to.
        generator: source of the random numbers; moves on by the same amount whatever is sampled.
        batch_size: prompts decoded together.
        advance: called with the number of responses that are ready.

    Returns:
        The samples in the order of the prompts.

    Raises:
        ModelError: a prompt is empty or fills the model's context.
    """
    limits = _limits(model, prompts, sampling.max_new_tokens)
    # Drawn for all prompts at once: a prompt's numbers do not depend on how batches are cut.
    uniforms_NT = _uniforms(len(prompts), sampling, generator)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    samples: list[Sample | None] = [None] * len(prompts)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            decoding = _Decoding(
                model,
                [prompts[i] for i in chosen],
                limits=[limits[i] for i in chosen],
                sampling=sampling,
                eos_token_ids=eos_token_ids,
                pad_token_id=pad_token_id,
                uniforms=uniforms_NT[chosen],
            )
            while not decoding.done:
                decoding.step()
            for place, sample in zip(chosen, decoding.samples(), strict=True):
                samples[place] = sample
            if advance is not None:
                advance(len(chosen))
    finally:
        model.train(training)
    return [sample for sample in samples if sample is not None]


def stream(
    model: PreTrainedModel,
    prompt: list[int],
    *,
    sampling: Sampling,
    eos_token_ids: Sequence[int],
    generator: torch.Generator,
) -> Iterator[int]:
    """Yield the tokens of one response as they are sampled; the end-of-sequence token is not.

    Raises:
        ModelError: the prompt is empty or fills the model's context.
    """
    model.eval()
    limits = _limits(model, [prompt], sampling.max_new_tokens)
    # No number is drawn for a token that the context has no room for.
    drawn = replace(sampling, max_new_tokens=limits[0])
    decoding = _Decoding(
        model,
        [prompt],
        limits=limits,
        sampling=drawn,
        eos_token_ids=eos_token_ids,
        pad_token_id=0,
        uniforms=_uniforms(1, drawn, generator),
    )
    while not decoding.done:
        token = int(decoding.step()[0])
        if token in eos_token_ids:
            return
        yield token


def decode(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    """Return a response's text without special tokens and surrounding white space."""
    return str(tokenizer.decode(sample.token_ids, skip_special_tokens=True)).strip()


def context_length(model: PreTrainedModel) -> int | None:
    """Return the most tokens a model takes, None when its configuration does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def _uniforms(count: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw a number for each token that each of the prompts may get."""
    return torch.rand(
        (count, sampling.max_new_tokens),
        generator=generator,
        device=generator.device,
        dtype=torch.float64,
    )


def _limits(model: PreTrainedModel, prompts: Sequence[list[int]], max_new_tokens: int) -> list[int]:
    """Return how many tokens each prompt's response may have."""
    context = context_length(model)
    limits = []
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise ModelError(f"prompt {place} has no tokens; drop it or begin it with a token")
        room = max_new_tokens if context is None else min(max_new_tokens, context - len(prompt))
        if room < 1:
            raise ModelError(
                f"prompt {place} has {len(prompt)} tokens and the model's context holds "
                f"{context}; shorten the prompts or use a model with a longer context"
            )
        limits.append(room)
    return limits


class _Decoding:
    """One batch of responses in the making; `step` samples one token for every running row."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        *,
        limits: list[int],
        sampling: Sampling,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        uniforms: Tensor,
    ) -> None:
        self.model, self.sampling = model, sampling
        device = model.device
        width, count, most = max(map(len, prompts)), len(prompts), max(limits)
        ids_BP = torch.full((count, width), pad_token_id)
        seen_BP = torch.zeros((count, width + most), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids_BP[row, width - len(prompt) :] = torch.tensor(prompt)
            seen_BP[row, width - len(prompt) :] = True
        self.padded = not bool(seen_BP.all())
        self.width, self.steps = width, 0
        self.inputs = ids_BP.to(device)
        # True where a key may be attended to: prompt tokens and all new tokens, never padding.
        self.seen = seen_BP.to(device)
        self.positions = (seen_BP[:, :width].long().cumsum(1) - 1).clamp(min=0).to(device)
        self.rows = torch.arange(count, device=device)
        self.running = torch.ones(count, dtype=torch.bool, device=device)
        self.limits = torch.tensor(limits, device=device)
        self.eos = torch.tensor(sorted(eos_token_ids), device=device, dtype=torch.long)
        self.uniforms = uniforms.to(device)
        self.tokens = torch.full((count, most), pad_token_id, device=device)
        self.logprobs = torch.zeros((count, most), device=device)
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.cache = _new_cache(model, capacity=width + most)
        self.extra = _forward_extras(model)
        self.done = False

    @torch.no_grad()
    def step(self) -> Tensor:
        """Sample the next token of every row in the batch and return them."""
        logits_BV = self._forward()
        tokens_B, logprobs_B = _draw(logits_BV, self.uniforms[self.rows, self.steps], self.sampling)
        live = self.rows[self.running]
        self.tokens[live, self.steps] = tokens_B[self.running]
        self.logprobs[live, self.steps] = logprobs_B[self.running]
        self.steps += 1
        self.lengths[live] = self.steps
        ended_B = torch.isin(tokens_B, self.eos) & self.running
        self.ended[self.rows[ended_B]] = True
        self.running &= ~ended_B & (self.limits > self.steps)
        left = int(self.running.sum())
        self.done = left == 0
        self.inputs = tokens_B[:, None]
        self.positions = self.positions[:, -1:] + 1
        if left and left <= COMPACT_SHARE * len(self.rows):
            self._compact()
        return tokens_B

    def samples(self) -> list[Sample]:
        """Return the responses in the order of the prompts."""
        tokens, logprobs = self.tokens.tolist(), self.logprobs.tolist()
        lengths, ended = self.lengths.tolist(), self.ended.tolist()
        return [
            Sample(token_ids=tokens[i][:n], ended=ended[i], logprobs=logprobs[i][:n])
            for i, n in enumerate(lengths)
        ]

    def _forward(self) -> Tensor:
        attended = self.width + self.steps
        output = self.model(
            input_ids=self.inputs,
            attention_mask=self.seen[:, :attended] if self.padded else None,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            **self.extra,
        )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV.float()

    def _compact(self) -> None:
        """Drop the rows that have ended from the batch."""
        kept = self.running.nonzero()[:, 0]
        self.cache.batch_select_indices(kept)
        self.inputs, self.positions = self.inputs[kept], self.positions[kept]
        self.seen, self.rows, self.limits = self.seen[kept], self.rows[kept], self.limits[kept]
        self.running = self.running[kept]
        self.padded = not bool(self.seen.all())


def _draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw a token from each row by its uniform number; return tokens and log-probabilities."""
    greedy = sampling.temperature == 0
    if not greedy and sampling.temperature != 1.0:
        logits_BV = logits_BV / sampling.temperature
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    if greedy:
        tokens_B = logprobs_BV.argmax(dim=-1)
    else:
        cumulative_BV = _truncated(logprobs_BV, sampling).exp().double().cumsum(dim=-1)
        # Scaled by the sum of what is left; below it by more than rounding, so that a token of
        # probability 0 is never drawn.
        targets_B1 = (uniforms_B.clamp(max=1 - 2**-40) * cumulative_BV[:, -1])[:, None]
        tokens_B = torch.searchsorted(cumulative_BV, targets_B1, right=True)[:, 0]
    return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]


def _truncated(logprobs_BV: Tensor, sampling: Sampling) -> Tensor:
    """Set the log-probabilities that top-k and top-p leave out to minus infinity."""
    if 0 < sampling.top_k < logprobs_BV.shape[-1]:
        least_B1 = logprobs_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logprobs_BV = logprobs_BV.masked_fill(logprobs_BV < least_B1, -torch.inf)
    if sampling.top_p < 1.0:
        sorted_BV, places_BV = logprobs_BV.softmax(dim=-1).sort(dim=-1, descending=True)
        # A token stays when the likelier ones have not reached top_p yet: the first always does.
        beyond_BV = sorted_BV.cumsum(dim=-1) - sorted_BV >= sampling.top_p
        left_out_BV = torch.zeros_like(beyond_BV).scatter(1, places_BV, beyond_BV)
        logprobs_BV = logprobs_BV.masked_fill(left_out_BV, -torch.inf)
    return logprobs_BV


def _forward_extras(model: PreTrainedModel) -> dict[str, Any]:
    """Ask for the last position's logits alone, where the model can give them."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}


def _new_cache(model: PreTrainedModel, *, capacity: int) -> DynamicCache:
    """Return an empty cache; sliding and other special layers keep transformers' own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class _ReservedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, written into memory that is taken once."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.used = capacity, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the new positions and return all that are there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_memory = self._reserve(key_states)
            self.value_memory = self._reserve(value_states)
        end = self.used + key_states.shape[-2]
        self.key_memory[:, :, self.used : end] = key_states
        self.value_memory[:, :, self.used : end] = value_states
        self.used = end
        self.keys, self.values = self.key_memory[:, :, :end], self.value_memory[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        kept = len(indices)
        for memory in (self.key_memory, self.value_memory):
            memory[:kept, :, : self.used] = memory[indices, :, : self.used]
        self.key_memory, self.value_memory = self.key_memory[:kept], self.value_memory[:kept]
        self.keys = self.key_memory[:, :, : self.used]
        self.values = self.value_memory[:, :, : self.used]

    def _reserve(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return states.new_empty((rows, heads, self.capacity, width))
