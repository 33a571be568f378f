"""Reads what checkpoints are judged on: prompts to answer, and texts for the perplexity."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import SourceError
from data.records import Document, PromptRow, answer_of, to_prompt, to_text
from data.words import counted
from pipeline.contract.settings import SourceSettings
from pipeline.contract.sources import PROMPTS, TEXTS, as_it_is, read_sources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MAX_TEXTS = 500
"""Texts that the perplexity is measured on, unless a `limit` of each source asks for more."""
Opening = Callable[[Document], PromptRow | None]
"""Makes a document's beginning a prompt; None where the document is too short."""


def read_prompts(
    sources: Sequence[SourceSettings],
    *,
    limit: int | None,
    seed: int,
    say: Callable[[str], None],
    opening: Opening | None = None,
) -> list[PromptRow]:
    """Return the prompts of all sources; of more than `limit` a choice, in their order.

    Args:
        sources: what is read.
        limit: at most so many.
        seed: of the choice.
        say: takes a line for the reader.
        opening: makes documents into prompts; without it they are refused.

    Raises:
        SourceError: a source can't be read, or holds documents, which ask nothing.
    """
    prompts: list[PromptRow] = []
    short = 0
    for record in read_sources(sources, as_it_is, where="prompts", wanted=PROMPTS, say=say):
        if not isinstance(record, Document):
            asked = to_prompt(record)
            prompts.append(replace(asked, meta={**answer_of(record), **asked.meta}))
        elif opening is None:
            raise SourceError(
                "prompts: the source holds documents, which ask nothing; set prefix_tokens to go "
                "on from their beginnings, or name prompts, conversations or rankings"
            )
        else:
            row = opening(record)
            short += row is None
            prompts += [row] if row is not None else []
    if short:
        say(f"dropped {counted(short, 'document')}: shorter than prefix_tokens")
    if limit is not None and len(prompts) > limit:
        chosen = random.Random(f"prompts/{seed}").sample(range(len(prompts)), limit)
        prompts = [prompts[place] for place in sorted(chosen)]
    return prompts


def opening_by(
    source: str | Path, tokens: int | None, *, trust_remote_code: bool = False
) -> Opening | None:
    """Return what makes documents into prompts by a checkpoint's tokenizer, None for no tokens."""
    from pipeline.models.load import load_tokenizer

    if tokens is None:
        return None
    return document_opening(load_tokenizer(source, trust_remote_code=trust_remote_code), tokens)


def document_opening(tokenizer: PreTrainedTokenizerBase, tokens: int) -> Opening:
    """Return what makes the first tokens of a document a plain prompt, as the ppo stage does."""

    def opening(document: Document) -> PromptRow | None:
        # Enough characters for the tokens that are wanted; a book need not be tokenised whole.
        ids = tokenizer(document.text[: 64 * tokens], add_special_tokens=False)["input_ids"]
        if len(ids) <= tokens:
            return None
        return PromptRow(
            prompt=str(tokenizer.decode(ids[:tokens], clean_up_tokenization_spaces=False)),
            id=document.id,
        )

    return opening


def read_texts(
    sources: Sequence[SourceSettings], *, limit: int, say: Callable[[str], None]
) -> list[str]:
    """Return at most `limit` texts of all sources, the first ones."""
    texts = read_sources(sources, to_text, where="perplexity", wanted=TEXTS, say=say)
    return list(islice((text for text in texts if text.strip()), limit))
