"""A prompt behind the passages that it is looked up by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data.records import Completion, Conversation, Prompt, prompt_of
from data.retrieval.index import Hit, Index, open_index
from data.sources.source import Source
from data.text.prompting import with_passages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Retriever:
    """Finds the passages of a prompt.

    Attributes:
        index: what they are found in.
        passages: most of them.
        tokens: most tokens of all together.
    """

    index: Index
    passages: int
    tokens: int

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        *,
        passages: int,
        tokens: int,
        say: Callable[[str], None],
    ) -> Retriever:
        """Return a retriever of corpora, cut into passages of which about as many fit.

        Raises:
            SourceError: a corpus can't be read, or holds no words.
            UsageError: bm25s is not installed.
        """
        # Byte-pair encodings take some four tokens for three words.
        words = max(1, 3 * tokens // (4 * passages))
        return cls(open_index(sources, words=words, say=say), passages, tokens)

    @property
    def follows_from(self) -> list[Any]:
        """What its passages depend on, as JSON."""
        return [self.index.content, self.passages, self.tokens]

    def read(self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompt, list[Hit]]:
        """Return a prompt behind its passages, and these; its last turn is what is looked up."""
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
        left, found = self.tokens, list[Hit]()
        for hit in self.index.search(asked, self.passages):
            size = len(tokenizer(f"{hit.text}\n", add_special_tokens=False)["input_ids"])
            if size <= left:
                left -= size
                found.append(hit)
        return with_passages(prompt, [hit.text for hit in found]), found

    def demonstrated(
        self, row: Conversation | Completion, tokenizer: PreTrainedTokenizerBase
    ) -> Conversation | Completion:
        """Return a demonstration whose last answer is given to its prompt behind passages."""
        prompt, _ = self.read(prompt_of(row), tokenizer)
        if isinstance(row, Completion):
            assert isinstance(prompt, str)
            return replace(row, prompt=prompt)
        return replace(row, messages=[*prompt, row.messages[-1]])
