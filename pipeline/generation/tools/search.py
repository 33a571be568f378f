"""The tool that looks up a corpus: its index is made before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.contract.tool_settings import SEARCH
from pipeline.generation.tools.registry import ToolError, ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.contract.retrieval import SearchSettings


def search_tool(
    settings: SearchSettings, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> ToolSpec:
    """Return the tool, the index of its corpus made or loaded.

    Raises:
        SourceError: the corpus can't be read, or holds no words.
        UsageError: bm25s is not installed.
    """
    index = settings.retriever(say).index

    def search(query: str) -> str:
        """Look up what a corpus says, by words of it."""
        hits = index.search(query, settings.passages)
        if not hits:
            raise ToolError(f"no passage has a word of {query!r:.40}")
        text = " ".join(hit.text for hit in hits)
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return text[: max(end for _, end in encoded["offset_mapping"][: settings.passage_tokens])]

    return ToolSpec.of(SEARCH, search)
