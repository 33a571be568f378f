"""The tool that looks up a corpus: its index is made before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.contract.tool_settings import SEARCH
from pipeline.generation.tools.registry import ToolError, ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.contract.retrieval import SearchSettings


def _search(query: str, *, index: Any, passages: int, tokens: int, tokenizer: Any) -> str:
    """Look up what a corpus says, by words of it."""
    hits = index.search(query, passages)
    if not hits:
        raise ToolError(f"no passage has a word of {query!r:.40}")
    text = " ".join(hit.text for hit in hits)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return text[: max(end for _, end in encoded["offset_mapping"][:tokens])]


SPEC = ToolSpec.of(SEARCH, _search)
"""The tool without an index."""


def search_tool(
    settings: SearchSettings, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> ToolSpec:
    """Return the tool, the index of its corpus made or loaded.

    Raises:
        SourceError: the corpus can't be read, or holds no words.
        UsageError: bm25s is not installed.
    """
    options = {
        "index": settings.retriever(say).index,
        "passages": settings.passages,
        "tokens": settings.passage_tokens,
        "tokenizer": tokenizer,
    }
    return replace(SPEC, options=options)
