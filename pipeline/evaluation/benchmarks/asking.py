"""How a task asks a checkpoint: its template or plain text, worked examples, and what shows of it.

A checkpoint with a chat template is asked through it, examples as earlier turns; one without, or
named in `plain`, gets `Question: ...` and `Answer:` lines, as base models are asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from data.errors import SourceError
from data.records import Message
from data.text.chat import render_prompt, response_ids
from pipeline.contract.console import Progress
from pipeline.evaluation.benchmarks.loglikelihood import Pair
from pipeline.evaluation.prompting import plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Item = TypeVar("Item")
SHOWN = 8
"""Token ids of a prompt that are kept."""


class Example(NamedTuple):
    """A question with its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Subject:
    """A checkpoint that tasks are asked of.

    Attributes:
        name: in the report.
        model: a causal model in evaluation mode.
        tokenizer: its tokenizer.
        plain: whether it is asked in plain text.
        batch_size: rows of a forward pass.
        seed: of draws and sampling.
        progress: shows a bar: (total, label, unit).
        say: takes a line for the reader.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plain: bool
    batch_size: int
    seed: int
    progress: Callable[[int | None, str, str], AbstractContextManager[Progress]]
    say: Callable[[str], None]

    def context(self, question: str, examples: Sequence[Example] = ()) -> list[int]:
        """Return the ids after which the answer to a question comes."""
        if self.plain:
            return plain_ids(self.tokenizer, _plain(question, examples))
        turns = [*((one.question, one.answer) for one in examples), (question, None)]
        messages = [
            Message(role=role, content=text)
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
            if text is not None
        ]
        return render_prompt(self.tokenizer, messages)

    def pairs(
        self, question: str, answers: Sequence[str], examples: Sequence[Example] = ()
    ) -> list[Pair]:
        """Return the context of a question with each of some answers."""
        context = self.context(question, examples)
        space, behind = (" ", _plain(question, examples)) if self.plain else ("", "")
        return [
            Pair(context, response_ids(self.tokenizer, space + answer, behind=behind))
            for answer in answers
        ]

    def opening(self, context: Sequence[int]) -> dict[str, Any]:
        """Return how a prompt begins, as reports show it: ids, tokens, and whether with bos."""
        ids, bos = list(context[:SHOWN]), self.tokenizer.bos_token_id
        return {
            "ids": ids,
            "tokens": [str(self.tokenizer.decode([one])) for one in ids],
            "bos": bos is not None and ids[:1] == [bos],
            "bos_twice": bos is not None and ids[:2] == [bos, bos],
        }


def _plain(question: str, examples: Sequence[Example]) -> str:
    shown = "".join(f"Question: {one.question}\nAnswer: {one.answer}\n\n" for one in examples)
    return f"{shown}Question: {question}\nAnswer:"


def drawn(
    pool: Sequence[Item], count: int, *, draw: int, seed: int
) -> Callable[[Mapping[str, Any] | Item], list[Item]]:
    """Return what gives the examples that one draw shows before a question, never that question.

    All questions of a draw are shown the same examples, in the same order; one that is among them
    is shown the next in its stead.

    Args:
        pool: what is drawn from.
        count: examples before a question.
        draw: which draw, from 0.
        seed: of all draws.

    Raises:
        SourceError: there are not so many others.
    """
    order = random.Random(f"shots/{seed}/{draw}").sample(list(pool), min(count + 1, len(pool)))

    def before(asked: Any) -> list[Item]:
        shown = [one for one in order if one != asked][:count]
        if len(shown) < count:
            raise SourceError(
                f"shots: {count} examples are to stand before each question, and there are "
                f"{len(shown)} others to draw from; ask for fewer, or name more in `examples`"
            )
        return shown

    return before
