"""Settings of retrieval: in which corpora a prompt is looked up, and what it gets of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field

from pipeline.contract.settings import PositiveInt, Settings, SourceSettings

if TYPE_CHECKING:
    from data.retrieval.reading import Retriever

T = TypeVar("T")
READING = "+retrieval"
"""Behind the name of a checkpoint that is given passages."""


class RetrievalSettings(Settings):
    """Passages that are put in front of each prompt, found by its words (BM25)."""

    corpus: tuple[SourceSettings, ...] = Field(min_length=1)
    """Where the passages are from: rows of any kind."""
    passages: Annotated[int, Field(gt=0, le=100)] = 3
    """At most so many, the best first."""
    passage_tokens: PositiveInt = 200
    """Tokens that all of them may take together; one that no longer fits is left out."""

    def retriever(self, say: Callable[[str], None]) -> Retriever:
        """Return what finds the passages; the index of a corpus is made once.

        Raises:
            SourceError: a corpus can't be read, or holds no words.
            UsageError: bm25s is not installed.
        """
        from data.retrieval.reading import Retriever

        return Retriever.of(
            [source.source() for source in self.corpus],
            passages=self.passages,
            tokens=self.passage_tokens,
            say=say,
        )


class SearchSettings(RetrievalSettings):
    """The tool `search`: it is called with words, and gives the passages that are found by them."""

    passages: Annotated[int, Field(gt=0, le=100)] = 1
    """At most so many, the best first."""
    passage_tokens: PositiveInt = 60
    """Tokens that all of them may take together; what is more is cut off."""


class ReadsPassages(Settings):
    """What stages have whose prompts may stand behind passages."""

    # Left out where there are none: runs from before there was such a setting go on.
    retrieve: RetrievalSettings | None = Field(None, exclude_if=lambda given: given is None)
    """Passages in front of each prompt, as evaluation puts them; none when not given."""

    @property
    def passage_tokens(self) -> int:
        """Most tokens of the passages of a prompt; 0 where there are none."""
        return self.retrieve.passage_tokens if self.retrieve else 0

    def retriever(self, say: Callable[[str], None]) -> Retriever | None:
        """Return what finds the passages of prompts, see `RetrievalSettings`; None without."""
        return None if self.retrieve is None else self.retrieve.retriever(say)


class ReadingSettings(RetrievalSettings):
    """How checkpoints are judged with passages beside themselves without."""

    checkpoints: tuple[str, ...] = ()
    """Those that are judged a second time, as NAME+retrieval; all when not given."""


def with_readers(checkpoints: Mapping[str, T], reading: ReadingSettings | None) -> dict[str, T]:
    """Return checkpoints with those among them that read passages, each behind itself without.

    Raises:
        ValueError: a checkpoint has the name that one that reads would have.
    """
    found: dict[str, T] = {}
    for name, place in checkpoints.items():
        found[name] = place
        if reading is not None and name in (reading.checkpoints or checkpoints):
            if name + READING in checkpoints:
                raise ValueError(f"'{name + READING}' is {name} with passages; name another")
            found[name + READING] = place
    return found
