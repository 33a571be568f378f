"""Reads what checkpoints are judged on: prompts to answer, and texts for the perplexity."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from data.errors import SourceError
from data.records import Document, PromptRow, Record, to_prompt, to_text
from data.sources import ReadReport, read


def read_prompts(
    sources: Sequence[Mapping[str, Any]],
    *,
    limit: int | None,
    seed: int,
    say: Callable[[str], None],
) -> list[PromptRow]:
    """Return the prompts of all sources; of more than `limit` a choice, in their order.

    Args:
        sources: keyword arguments of `data.sources.read`.
        limit: at most so many.
        seed: of the choice.
        say: is told of malformed and dropped rows.

    Raises:
        SourceError: a source can't be read, or holds documents, which ask nothing.
    """
    prompts: list[PromptRow] = []
    for record in _records(sources, say):
        if isinstance(record, Document):
            raise SourceError(
                "prompts: the source holds documents, which ask nothing; name one of prompts, "
                "conversations or rankings, or map a column to `prompt`"
            )
        prompts.append(to_prompt(record))
    if limit is not None and len(prompts) > limit:
        chosen = random.Random(f"prompts/{seed}").sample(range(len(prompts)), limit)
        prompts = [prompts[place] for place in sorted(chosen)]
    return prompts


def read_texts(
    sources: Sequence[Mapping[str, Any]], *, limit: int, say: Callable[[str], None]
) -> list[str]:
    """Return at most `limit` texts of all sources, the first ones."""
    texts = (to_text(record) for record in _records(sources, say))
    return list(islice((text for text in texts if text.strip()), limit))


def _records(sources: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> Iterator[Record]:
    for source in sources:
        report = ReadReport()
        yield from read(**source, report=report)
        if report.bad or report.dropped:
            for line in report.lines():
                say(line)
