"""Sampling from a policy: an own decode loop over transformers' models.

Against `transformers`' `generate`: rows that have ended leave the decode batch and waiting prompts
take their place, so that short answers do not pay for long ones (`pipeline.generation.decoder`);
the keys and values are written into memory taken once, instead of a new tensor a token; the
log-probability of every sampled token comes along; and the random numbers of a prompt depend on
its place among the prompts alone, so that neither the batch size nor what else is in the batch
changes what is sampled; in bf16 on a processor the products read weights that are laid out once
(`pipeline.generation.packed_weights`). In fp32 greedy tokens are the same. Encoder-decoders are
sampled from by the same calls (`pipeline.generation.seq2seq`): a prompt is what the encoder reads.

Shapes: B rows, N prompts, T new tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from data.errors import ModelError
from data.text.continuation import continuation_text
from pipeline.contract.tool_settings import NO_TURNS
from pipeline.generation.decoder import Decoder, Follow, Response
from pipeline.generation.packed_weights import packed_weights
from pipeline.generation.seq2seq import decoder_for
from pipeline.generation.tools.calls import Call
from pipeline.generation.tools.template_form import TemplateForm
from pipeline.generation.tools.toolbox import Calling, ToolBox
from pipeline.generation.trial import fitting_memory
from pipeline.models.batches import MOST_LOGITS
from pipeline.models.load import context_length
from pipeline.models.seq2seq import is_encoder_decoder, response_room
from pipeline.models.trials import evaluating
from pipeline.models.unused_ids import without_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from data.records import Prompt


MOST_KEYS = 2**30
"""Bytes of keys and values up to which rows are decoded wide."""
DRAWN_AT_ONCE = 2**18
"""Logits that a processor draws from at once: what is made of them then stays in its caches."""


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

    @property
    def divides(self) -> bool:
        """Whether the temperature is one that logits can be divided by, or 0."""
        return self.temperature == 0 or 1e-20 <= self.temperature < math.inf


@dataclass(frozen=True)
class Sample:
    """A sampled response.

    Attributes:
        token_ids: its tokens; the end-of-sequence token is the last when it ended.
        ended: whether it ended by itself.
        logprobs: log-probability of each token under the temperature-scaled distribution over
            all ids that texts have (see `pipeline.models.unused_ids`), whatever top-k and top-p;
            unscaled when the temperature is 0.
        own: whether each token is the model's own; one that a tool's result put there has a
            log-probability of 0. None where all are the model's.
        calls: the calls of tools, in order.
        given: what each stretch of tokens that is not the model's own is in the response's text;
            none where that is their own text.
        alone: whether the response is a text of its own, as an encoder-decoder's are, and goes on
            from no prompt.
    """

    token_ids: list[int]
    ended: bool
    logprobs: list[float]
    own: list[bool] | None = None
    calls: tuple[Call, ...] = ()
    given: tuple[str, ...] = ()
    alone: bool = False

    @property
    def own_ids(self) -> list[int]:
        """The tokens that are the model's own."""
        return self.token_ids if self.own is None else list(compress(self.token_ids, self.own))


class Token(NamedTuple):
    """A token of a response, and whether the model drew it."""

    id: int
    own: bool


def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    generator: torch.Generator,
    batch_size: int = 64,
    stop: Callable[[list[int]], bool] | None = None,
    tools: ToolBox | None = None,
    wide: bool = False,
    advance: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Sample]:
    """Return a sample of a response to each prompt, which also stops where the context is full.

    Args:
        model: a policy, unwrapped.
        prompts: token ids of each prompt, as `pipeline.models.seq2seq.asked_ids` gives them.
        sampling: how tokens are drawn.
        eos_token_ids: tokens that end a response.
        pad_token_id: fills short prompts from the left; never attended to.
        generator: source of the random numbers; moves on by the same amount whatever is sampled.
        batch_size: prompts decoded together.
        stop: tells of a response's tokens whether the last of them ends it.
        tools: what responses may call; results count as new tokens.
        wide: decode more rows than a batch of prompts has, which reads the weights less often, and
            in fp32 lay them out for that; what is drawn follows to rounding.
        advance: called with the number of responses that are ready.
        say: told once of a model that is sampled from without a cache.

    Raises:
        ModelError: a prompt is empty or fills the context, or the model can't be sampled from.
    """
    if not prompts:
        return []
    limits = _limits(model, prompts, sampling.max_new_tokens, tools)
    # Drawn for all prompts at once: a prompt's numbers do not depend on how batches are cut.
    uniforms_NT = uniforms(len(prompts), sampling, generator)
    calling = Calling(tools, len(prompts))
    with evaluating(model):
        decoder, order = _decoding(
            model,
            prompts,
            limits,
            sampling=sampling,
            uniforms_NT=uniforms_NT,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
            slots=_rows(model, _longest(prompts, limits), batch_size) if wide else batch_size,
            say=say,
            stop=stop,
            follow=None if tools is None else calling.follow,
            prefill=batch_size if wide else None,
        )
        with packed_weights(model, rows=decoder.slots, steps=decoder.most_steps, fp32=wide):
            _finish(decoder, advance)
    samples = map(partial(_sample, model), decoder.responses, calling.calls, calling.texts)
    return [sample for _, sample in sorted(zip(order, samples, strict=True))]


def _sample(
    model: PreTrainedModel, response: Response, calls: Sequence[Call], given: Sequence[str]
) -> Sample:
    return Sample(
        response.token_ids,
        response.ended,
        response.logprobs,
        None if all(response.own) else response.own,
        tuple(calls),
        tuple(given),
        is_encoder_decoder(model),
    )


def _finish(decoder: Decoder, advance: Callable[[int], None] | None) -> None:
    """Decode to the end."""
    while not decoder.done:
        finished = decoder.finished
        decoder.step()
        if advance is not None and decoder.finished > finished:
            advance(decoder.finished - finished)


def _longest_first(prompts: Sequence[list[int]]) -> list[int]:
    """Return an order of prompts in which equal ones stand together, to be computed once."""
    opens = {tuple(prompt): place for place, prompt in reversed(list(enumerate(prompts)))}
    return sorted(
        range(len(prompts)), key=lambda i: (-len(prompts[i]), opens[tuple(prompts[i])], i)
    )


def stream(
    model: PreTrainedModel,
    prompt: list[int],
    *,
    sampling: Sampling,
    eos_token_ids: Sequence[int],
    generator: torch.Generator,
    tools: ToolBox | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Token]:
    """Yield the tokens of one response as they are sampled; the end-of-sequence token is not.

    Raises:
        ModelError: the prompt is empty or fills the model's context, or the model can't be sampled
            from.
    """
    limits = _limits(model, [prompt], sampling.max_new_tokens, tools)
    # No number is drawn for a token that the context has no room for.
    drawn = replace(sampling, max_new_tokens=limits[0])
    decoder, _ = decoding(
        model,
        [prompt],
        sampling=drawn,
        uniforms_NT=uniforms(1, drawn, generator),
        eos_token_ids=eos_token_ids,
        pad_token_id=0,
        follow=None if tools is None else Calling(tools, 1).follow,
        say=say,
    )
    while not decoder.done:
        decoder.step()
        response = decoder.responses[0]
        if not response.ended:
            yield Token(response.token_ids[-1], response.own[-1])


def decoding(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling,
    uniforms_NT: Tensor,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    follow: Follow | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Decoder, list[int]]:
    """Return what decodes prompts together, a token a step, and which prompt each response is to.

    Raises:
        ModelError: a prompt is empty or fills the model's context, or the model can't be sampled
            from.
    """
    model.eval()
    return _decoding(
        model,
        prompts,
        _limits(model, prompts, sampling.max_new_tokens),
        sampling=sampling,
        uniforms_NT=uniforms_NT,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id,
        slots=len(prompts),
        say=say,
        follow=follow,
    )


def _decoding(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    *,
    sampling: Sampling,
    uniforms_NT: Tensor,
    say: Callable[[str], None] | None,
    **how: Any,
) -> tuple[Decoder, list[int]]:
    """Return what `decoding` does, of responses of at most so many tokens; `how` is a decoder's."""
    order = _longest_first(prompts)
    decoder = decoder_for(model)(
        model,
        [prompts[i] for i in order],
        limits=[limits[i] for i in order],
        draw=partial(_draw, sampling=sampling, model=model),
        uniforms_NT=uniforms_NT[order],
        memory=fitting_memory(model, length=_longest(prompts, limits), say=say),
        **how,
    )
    return decoder, order


def response_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    prompt_ids: Sequence[int],
    sample: Sample,
) -> str:
    """Return a response's text without special tokens.

    Of a chat it has no white space around it, nor where it is a text of its own.
    """
    # What goes on from plain text keeps the space before its first word: so rankings have it, and
    # so reward models read it.
    if isinstance(prompt, str) and not sample.alone:
        return continuation_text(tokenizer, prompt_ids, sample.token_ids)
    if sample.given:
        return turns_text(tokenizer, sample)
    return continuation_text(tokenizer, [], sample.token_ids).strip()


def turns_text(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    """Return what a model wrote in each of its turns, and between them what its tools gave."""
    given, texts = iter(sample.given), list[str]()
    for own, run in groupby(zip(sample.token_ids, sample.own or [], strict=True), itemgetter(1)):
        ids = [token for token, _ in run]
        texts.append(continuation_text(tokenizer, [], ids).strip() if own else next(given))
    return "\n".join(filter(None, texts))


def uniforms(count: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw a number for each token that each of the prompts may get."""
    return torch.rand(
        (count, sampling.max_new_tokens),
        generator=generator,
        device=generator.device,
        dtype=torch.float64,
    )


def _limits(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    tools: ToolBox | None = None,
) -> list[int]:
    """Return how many tokens each prompt's response may have."""
    if tools is not None and isinstance(tools.form, TemplateForm) and is_encoder_decoder(model):
        raise ModelError(f"{model.name_or_path or 'the model'} {NO_TURNS}")
    context = context_length(model)
    limits = []
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise ModelError(f"prompt {place} has no tokens; drop it or begin it with a token")
        left = response_room(context, len(prompt), encoder_decoder=is_encoder_decoder(model))
        room = max_new_tokens if left is None else min(max_new_tokens, left)
        if room < 1:
            raise ModelError(
                f"prompt {place} has {len(prompt)} tokens and the model's context holds "
                f"{context}; shorten the prompts or use a model with a longer context"
            )
        limits.append(room)
    return limits


def _rows(model: PreTrainedModel, longest: int, batch_size: int) -> int:
    """Return how many rows to decode at a time: a batch, or more where they take little memory."""
    config = model.config.get_text_config()
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    layers, heads, hidden, vocabulary = (getattr(config, name, None) for name in names)
    if not (layers and heads and hidden and vocabulary):
        return batch_size
    size = getattr(config, "head_dim", None) or hidden // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    # Keys and values, and room for as many again before the window moves back.
    row = 2 * 2 * layers * heads * size * longest * model.dtype.itemsize
    wide: int = min(MOST_KEYS // row, MOST_LOGITS // (4 * vocabulary))
    return max(batch_size, wide)


def _longest(prompts: Sequence[list[int]], limits: Sequence[int]) -> int:
    return max(len(ids) + limit for ids, limit in zip(prompts, limits, strict=True))


def _draw(
    logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling, model: PreTrainedModel | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a token from each row by its uniform number; return tokens and log-probabilities."""
    rows, size = logits_BV.shape
    on_processor = logits_BV.device.type == "cpu"
    count = -(-rows // max(1, DRAWN_AT_ONCE // size)) if on_processor else 1
    parts = zip(logits_BV.chunk(count), uniforms_B.chunk(count), strict=True)
    tokens, logprobs = zip(*(_draw_rows(*part, sampling, model) for part in parts), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _draw_rows(
    logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling, model: PreTrainedModel | None
) -> tuple[Tensor, Tensor]:
    greedy = sampling.temperature == 0
    if not greedy and sampling.temperature != 1.0:
        logits_BV = logits_BV / sampling.temperature
    logits_BV = without_unused(logits_BV, model)
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
