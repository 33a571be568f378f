"""The prompts of a run: made into tokens once, and the order in which they come."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from data.errors import ControlTokenError
from data.records import (
    Document,
    Prompt,
    PromptRow,
    Record,
    answer_of,
    prompt_hash,
    to_prompt,
)
from data.text.prompt_notes import PromptNotes
from data.words import counted
from pipeline.generation.tools.toolbox import told
from pipeline.models.seq2seq import asked_ids
from pipeline.rl.processes import derived_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.retrieval.reading import Retriever
    from pipeline.contract.tool_settings import ToolsSettings


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt, as records and reward models take it and as the policy does.

    `meta` holds the other columns of its row, which rewards may look at.
    """

    prompt: Prompt
    ids: list[int]
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class PromptReport:
    """What became of the rows: how many were kept, with notes on them, how many dropped and why."""

    kept: int = 0
    notes: PromptNotes = field(default_factory=PromptNotes)
    dropped: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """Return the report as lines for the console."""
        lost = self.dropped.most_common()
        dropped = [f"dropped {counted(count, 'row')}: {why}" for why, count in lost]
        return [counted(self.kept, "prompt"), *self.notes.lines(), *dropped]


def prepare_prompts(
    records: Iterable[Record],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    prefix_tokens: int | None,
    report: PromptReport,
    encoder_decoder: bool = False,
    tools: ToolsSettings | None = None,
    retriever: Retriever | None = None,
) -> list[PreparedPrompt]:
    """Make records into prompts, each distinct one once.

    Args:
        records: anything that has a prompt; of a document, the first tokens are one.
        tokenizer: the policy's.
        max_tokens: a longer prompt is dropped and counted.
        prefix_tokens: tokens of a document that are its prompt (lm-human-preferences: 2 to 64);
            documents with fewer tokens are dropped. None drops all documents.
        report: filled in.
        encoder_decoder: whether the policy is one.
        tools: what responses may call.
        retriever: finds the passages that each stands behind, which count as its tokens.
    """
    prepared, seen = [], set()
    for record in records:
        if isinstance(record, Document):
            row = _opening(record, tokenizer, prefix_tokens)
        else:
            row = to_prompt(record)
        if row is None:
            report.dropped["a document shorter than prefix_tokens, or no prefix_tokens"] += 1
            continue
        if retriever is not None:
            row = replace(row, prompt=retriever.read(row.prompt, tokenizer)[0])
        try:
            asked = told(tools, row.prompt)
            ids = list(asked_ids(tokenizer, asked, encoder_decoder=encoder_decoder))
        except ControlTokenError as error:
            report.dropped[str(error)] += 1
            continue
        digest = prompt_hash(row.prompt)
        if len(ids) > max_tokens:
            report.dropped[f"longer than max_prompt_tokens {max_tokens}"] += 1
        elif digest in seen:
            report.dropped["the same prompt again"] += 1
        else:
            seen.add(digest)
            report.notes.take(tokenizer, row.prompt)
            meta = {**answer_of(record), **row.meta}
            prepared.append(PreparedPrompt(prompt=row.prompt, ids=ids, id=row.id, meta=meta))
    report.kept += len(prepared)
    return prepared


def _opening(
    document: Document, tokenizer: PreTrainedTokenizerBase, tokens: int | None
) -> PromptRow | None:
    """Return the first tokens of a document as a plain prompt, None when there are too few."""
    if tokens is None:
        return None
    # Enough characters for the tokens that are wanted; a book need not be tokenised whole.
    ids = tokenizer(document.text[: 64 * tokens], add_special_tokens=False)["input_ids"]
    if len(ids) <= tokens:
        return None
    return PromptRow(
        prompt=str(tokenizer.decode(ids[:tokens], clean_up_tokenization_spaces=False)),
        id=document.id,
    )


class Order:
    """An endless order of items: each pass is a permutation, drawn from the seed and its number.

    A place in it is one number, which is all that a resumed run needs to know.
    """

    def __init__(self, size: int, *, seed: int, purpose: str) -> None:
        self.size, self.seed, self.purpose = size, seed, purpose
        self._pass = -1
        self._items: list[int] = []

    def __getitem__(self, place: int) -> int:
        """Return the item at a place, from 0 on without end."""
        number, offset = divmod(place, self.size)
        if number != self._pass:
            self._pass, self._items = number, list(range(self.size))
            random.Random(derived_seed(self.seed, self.purpose, number)).shuffle(self._items)
        return self._items[offset]
