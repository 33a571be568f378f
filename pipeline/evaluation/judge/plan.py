"""What an evaluation is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import UsageError
from data.records import Prompt, PromptRow
from pipeline.evaluation.benchmarks.settings import TaskSettings
from pipeline.evaluation.judge.figures import RESAMPLES
from pipeline.evaluation.judge.sampling import Decoding
from pipeline.generation.tools.toolbox import ToolBox, told, toolbox, tools_content

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.retrieval.index import Hit
    from data.retrieval.reading import Retriever
    from reward.scorer import Scorer


class ScoreJudge(NamedTuple):
    """A judge that gives each answer a score.

    Attributes:
        load: makes what scores ready.
        content: tells it from others, for what is kept of its scores.
        told: of what kind the judge is, and what else a reader must know of it.
    """

    load: Callable[[], Scorer]
    content: Any
    told: dict[str, Any]


class Judged(NamedTuple):
    """What a judge said who compares two answers.

    Attributes:
        rows: those of `judgements.jsonl`, the judge's name apart (see `figures`).
        told: of what kind the judge is, and what else a reader must know of it.
    """

    rows: list[dict[str, Any]]
    told: dict[str, Any]


PairJudge = Callable[[Sequence[Mapping[str, Any]]], Judged]
"""Compares answers of any two checkpoints, given all samples."""


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and how.

    Attributes:
        checkpoints: name -> folder or hub id, in the order of training.
        prompts: what they answer.
        decodings: name -> how the checkpoint is sampled.
        texts: what the perplexity is taken of; none, no perplexity.
        reference: name of the checkpoint that KL is measured to; None for no KL.
        plain: checkpoints that are given plain text instead of the chat template.
        world_seed: seed of the embedded world whose annotator judges; None without that judge.
        score_judges: name -> who scores answers; `proxy` is what checkpoints should please.
        pair_judges: name -> who compares two answers; asked last, they may take their time.
        require_judges: called before the first answer is made; raises where a judge can't be had.
        batch_size: rows a forward pass.
        bf16: compute in bfloat16.
        max_too_long_share: share of prompts too long for a checkpoint above which it stops.
        resamples: draws of each bootstrap.
        seed: of sampling and of each bootstrap.
        trust_remote_code: run code that a checkpoint carries.
        seen: counts what of prompts and texts was seen in training; None where nobody knows.
        made_by: the stages that each checkpoint came to be by, as far as they read prompts.
        tasks: benchmark tasks that each checkpoint is asked, prompts or none.
        best_of: answers to each prompt drawn from the reference, to choose among; 0 for none.
        retriever: finds passages; None where nobody is given any.
        readers: checkpoints whose prompts stand behind passages; tasks are not asked of them.
    """

    checkpoints: Mapping[str, str | Path]
    prompts: Sequence[PromptRow]
    decodings: Mapping[str, Decoding]
    texts: Sequence[str] = ()
    reference: str | None = None
    plain: frozenset[str] = frozenset()
    world_seed: int | None = None
    score_judges: Mapping[str, ScoreJudge] = field(default_factory=dict)
    pair_judges: Mapping[str, PairJudge] = field(default_factory=dict)
    require_judges: Callable[[], None] = lambda: None
    batch_size: int = 64
    bf16: bool = False
    max_too_long_share: float = 0.05
    resamples: int = RESAMPLES
    seed: int = 0
    trust_remote_code: bool = False
    seen: Callable[[Sequence[PromptRow], Sequence[str]], dict[str, Any]] | None = None
    made_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tasks: Sequence[TaskSettings] = ()
    best_of: int = 0
    retriever: Retriever | None = None
    readers: frozenset[str] = frozenset()

    def given(
        self, name: str, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[Prompt], list[list[Hit]] | None]:
        """Return the prompts as a checkpoint is given them, and the passages in front of each."""
        prompts, tools = [row.prompt for row in self.prompts], self.decodings[name].tools
        if self.retriever is None or name not in self.readers:
            return [told(tools, prompt) for prompt in prompts], None
        read = [self.retriever.read(prompt, tokenizer) for prompt in prompts]
        return [told(tools, prompt) for prompt, _ in read], [found for _, found in read]

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of a response, which all checkpoints have alike."""
        return next(iter(self.decodings.values())).sampling.max_new_tokens

    def require_pool(self) -> None:
        """Refuse to choose among the best of n of a reference that always answers the same.

        Raises:
            UsageError: its own generation settings are greedy.
        """
        if self.reference and self.decodings[self.reference].sampling.temperature == 0:
            raise UsageError(
                f"best of n draws several answers from {self.reference}, and its own generation "
                "settings always take the likeliest token; set a temperature above 0"
            )

    def toolbox(self, name: str, tokenizer: PreTrainedTokenizerBase) -> ToolBox | None:
        """Return what a checkpoint's responses may call."""
        tools = self.decodings[name].tools
        if tools is not None and tools.form == "template" and name in self.plain:
            raise UsageError(
                f"{name} is asked in plain text, and its chat template tells of tools with "
                "`form: template`; take it out of `plain`, or set `form: inline` of its tools"
            )
        return toolbox(tools, tokenizer)

    def tools_content(self, name: str) -> list[Any]:
        """Return what the results of a checkpoint's tools follow from; nothing without tools."""
        tools = self.decodings[name].tools
        return [] if tools is None else tools_content(tools)

    def has_kl(self, name: str) -> bool:
        """Tell whether a checkpoint has a KL to the reference, which is another one."""
        places = self.checkpoints
        return self.reference is not None and str(places[name]) != str(places[self.reference])


def sampling_seed(seed: int, name: str) -> int:
    """Return the seed of a checkpoint's answers, the same whatever others are evaluated."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big")
