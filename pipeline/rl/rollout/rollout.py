"""Sampling responses: one interface, an engine in this process behind it.

Another engine (a server that holds its own copy of the weights) implements `RolloutEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from pipeline.generation.generate import Sample, Sampling, generate, response_text
from pipeline.generation.tools.toolbox import ToolBox
from pipeline.models.compile import uncompiled
from pipeline.rl.maths.masking import length_mask, truncate_after_end
from pipeline.rl.processes import World
from pipeline.rl.prompts import Order, PreparedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RolloutEngine(Protocol):
    """Samples responses with the policy's current weights."""

    def sample(self, prompts: Sequence[list[int]], *, generator: torch.Generator) -> list[Sample]:
        """Return one response to each prompt."""
        ...

    def synchronize(self) -> None:
        """Take the policy's weights after an update."""
        ...


class Weights(Protocol):
    """What is trained, as who samples from it takes it."""

    def full_module(self) -> AbstractContextManager[Any]:
        """Give what has the model, with all its weights, as `model`."""
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Samples with the model that is trained, in this process.

    Attributes:
        policy: holds the model that samples.
        sampling: length, temperature, truncation.
        end_ids: tokens that end a response.
        pad_id: the padding token.
        batch_size: responses decoded together.
        world: for mixed precision.
        weights: context in which the model has the policy's weights, such as a merged adapter's.
        say: told once of a model that is sampled from without a cache.
        tools: what responses may call.
    """

    policy: Weights
    sampling: Sampling
    end_ids: Sequence[int]
    pad_id: int
    batch_size: int
    world: World
    weights: Callable[[], AbstractContextManager[None]] = nullcontext
    say: Callable[[str], None] | None = None
    tools: ToolBox | None = None

    def sample(self, prompts: Sequence[list[int]], *, generator: torch.Generator) -> list[Sample]:
        """Return one response to each prompt."""
        with (
            self.policy.full_module() as policy,
            self.weights(),
            self.world.autocast(),
            _cast_once(policy.model),
            uncompiled(),
        ):
            return generate(
                policy.model,
                prompts,
                sampling=self.sampling,
                eos_token_ids=self.end_ids,
                pad_token_id=self.pad_id,
                generator=generator,
                batch_size=self.batch_size,
                tools=self.tools,
                say=self.say,
            )

    def synchronize(self) -> None:
        """Nothing to do: the weights are the ones that are trained."""


@contextmanager
def _cast_once(model: nn.Module) -> Iterator[None]:
    """Let mixed precision keep its copies of frozen weights from token to token.

    It keeps those of weights that want gradients alone, and would cast a trunk at every step.
    """
    frozen = [p for p in model.parameters() if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class Episodes:
    """Prompts and their sampled responses, on one process.

    Attributes:
        prompts: one an episode.
        samples: their responses.
        texts: the responses as text, without special tokens.
    """

    prompts: list[PreparedPrompt]
    samples: list[Sample]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)


def roll_out(
    engine: RolloutEngine,
    *,
    prompts: Sequence[PreparedPrompt],
    order: Order,
    first: int,
    episodes: int,
    update: int,
    max_new_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    end_ids: Sequence[int] = (),
    end_after: int = 0,
) -> Episodes:
    """Sample this process's share of an update's episodes.

    Args:
        engine: samples.
        prompts: all of them.
        order: the order in which they come.
        first: place in the order of the global batch's first episode.
        episodes: episodes of the global batch.
        update: number of the update.
        max_new_tokens: longest response.
        tokenizer: the policy's.
        world: the processes.
        end_ids: tokens that end a response from `end_after` on, beside those the engine knows.
        end_after: first position at which one of them counts.
    """
    share = episodes // world.size
    start = share * world.rank
    return respond(
        engine,
        [prompts[order[first + start + i]] for i in range(share)],
        start=start,
        generator=world.generator("rollout", update),
        max_new_tokens=max_new_tokens,
        tokenizer=tokenizer,
        end_ids=end_ids,
        end_after=end_after,
    )


def respond(
    engine: RolloutEngine,
    chosen: list[PreparedPrompt],
    *,
    start: int,
    generator: torch.Generator,
    max_new_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int] = (),
    end_after: int = 0,
) -> Episodes:
    """Sample a response to each of this process's prompts.

    Args:
        engine: samples.
        chosen: the prompts.
        start: place of the first among those of all processes.
        generator: gives the random numbers of all processes' responses.
        max_new_tokens: longest response.
        tokenizer: the policy's.
        end_ids: as in `roll_out`.
        end_after: likewise.
    """
    # The random numbers of an episode depend on its place in the global batch, not on how many
    # processes share it: each passes over those of the episodes before its own.
    torch.rand((start, max_new_tokens), generator=generator, dtype=torch.float64)
    samples = engine.sample([p.ids for p in chosen], generator=generator)
    if end_ids:
        samples = _cut(samples, end_ids=end_ids, start=end_after)
    texts = [
        response_text(tokenizer, asked.prompt, asked.ids, sample)
        for asked, sample in zip(chosen, samples, strict=True)
    ]
    return Episodes(chosen, samples, texts)


def _cut(samples: Sequence[Sample], *, end_ids: Sequence[int], start: int) -> list[Sample]:
    """Cut responses off after their first token of these from a position on."""
    lengths_B = torch.tensor([len(sample.token_ids) for sample in samples])
    width = int(lengths_B.max())
    rows = [s.token_ids + [0] * (width - len(s.token_ids)) for s in samples]
    cut = truncate_after_end(
        tokens_BT=torch.tensor(rows),
        mask_BT=length_mask(lengths_B=lengths_B, size=width),
        end_ids=torch.tensor(list(end_ids)),
        start=start,
    )
    return [
        replace(
            sample,
            token_ids=sample.token_ids[:length],
            logprobs=sample.logprobs[:length],
            ended=sample.ended or ends,
        )
        for sample, length, ends in zip(
            samples, cut.lengths_B.tolist(), cut.ended_B.tolist(), strict=True
        )
    ]
