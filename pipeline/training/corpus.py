"""The text of a pretraining stage as token chunks on disk, written once and read by index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.errors import ArtifactError, SourceError
from data.records import to_text
from data.sources.read import ReadReport
from data.sources.split import is_heldout_text
from data.storage import write_atomically
from data.text.packing import Chunk, PackedShards, write_shards
from data.text.tokenizer import token_byte_lengths, tokenize_documents
from data.words import counted
from pipeline.contract.sources import TEXTS
from pipeline.training.objectives.causal import (
    BY_POSITIONS,
    Documents,
    LmBatch,
    next_token_batch,
)
from pipeline.training.objectives.perplexity import separator_id
from pipeline.training.objectives.rows import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.contract.context import StageContext
    from pipeline.contract.settings import SourceSettings

COUNTS = "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """Chunks to learn and chunks held out.

    Attributes:
        train: what is learned.
        heldout: what the model is judged on; None when nothing is held out.
        counts: documents, tokens and rows, for the metrics.
    """

    train: PackedShards
    heldout: PackedShards | None
    counts: dict[str, int]


def prepare_corpus(
    context: StageContext[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    train: Sequence[SourceSettings],
    heldout: Sequence[SourceSettings],
    heldout_share: float,
    context_length: int,
    vocab_size: int,
) -> Corpus:
    """Tokenise and pack the sources into `work/`, or open what an earlier attempt packed there.

    The main process writes while the others wait. Whatever was dropped is said.

    Raises:
        SourceError: a source can't be read or fills no chunk.
        StorageError: the disk is full.
    """
    folder = context.folder / "work"
    if context.main_process and _opened(folder, context.resume.key) is None:
        folder.mkdir(exist_ok=True)
        packer = _Packer(context, tokenizer, context_length, vocab_size, folder)
        counts = packer.pack("train", train, share=heldout_share, inside=False)
        if heldout:
            counts |= packer.pack("heldout", heldout, share=0.0, inside=False)
        elif heldout_share:
            counts |= packer.pack("heldout", train, share=heldout_share, inside=True)
        content = {"key": context.resume.key, "counts": counts}
        write_atomically(folder / COUNTS, json.dumps(content))
    context.resume.barrier()
    corpus = _opened(folder, context.resume.key)
    assert corpus is not None, "the main process has packed the corpus"
    return corpus


def _opened(folder: Path, key: str) -> Corpus | None:
    """Return the corpus that was packed for this key, None when there is no whole one."""
    try:
        content = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        counts = content["counts"]
        heldout = PackedShards(folder / "heldout") if "heldout_tokens" in counts else None
        return Corpus(PackedShards(folder / "train"), heldout, counts)
    except (OSError, ValueError, KeyError, ArtifactError):
        return None


@dataclass
class _Packer:
    context: StageContext[Any]
    tokenizer: PreTrainedTokenizerBase
    context_length: int
    vocab_size: int
    folder: Path

    def pack(
        self, name: str, sources: Sequence[SourceSettings], *, share: float, inside: bool
    ) -> dict[str, int]:
        """Pack the texts of sources that are in (or not in) the held-out share."""
        reports: list[ReadReport] = []
        read = self.context.read(name, sources, to_text, wanted=TEXTS, reports=reports)
        with self.context.progress(None, f"packing {name}", unit="documents") as bar:

            def counted(texts: Iterable[str]) -> Iterator[str]:
                for text in texts:
                    bar.advance(1)
                    yield text

            texts = (text for text in read if is_heldout_text(text, share=share) == inside)
            try:
                shards = write_shards(
                    self.folder / name,
                    tokenize_documents(self.tokenizer, counted(texts)),
                    context_length=self.context_length,
                    vocabulary_size=self.vocab_size,
                    separator_id=separator_id(self.tokenizer),
                    token_bytes=token_byte_lengths(self.tokenizer),
                    keep_tail=name == "heldout",
                )
            except SourceError as error:
                raise SourceError(f"stage {self.context.name}: {name}: {error}") from error
        return self._told(name, shards, reports)

    def _told(
        self, name: str, shards: PackedShards, reports: Sequence[ReadReport]
    ) -> dict[str, int]:
        index = shards.about
        lost = 0 if index.tail_kept else index.tail_tokens
        self.context.say(
            f"{name}: {counted(index.documents, 'document')}, {counted(index.tokens, 'token')} in "
            f"{counted(index.chunks, 'chunk')} of {index.context_length}"
            + (f"; {counted(lost, 'token')} at the end fill no chunk, left out" if lost else "")
        )
        return {
            f"{name}_documents": index.documents,
            f"{name}_tokens": index.tokens,
            f"{name}_tokens_left_out": lost,
            f"{name}_bad_rows": sum(report.bad for report in reports),
        }


class ChunkOrder:
    """The order in which chunks are learned: a permutation an epoch, from seed and epoch alone."""

    def __init__(self, chunks: int, *, seed: int) -> None:
        self.chunks, self.seed = chunks, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        """Return the chunk at a place of the endless sequence of epochs."""
        epoch, within = divmod(place, self.chunks)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.chunks)
        return int(self._order[within])

    def batch(self, step: int, size: int) -> list[int]:
        """Return the chunks of a step."""
        return [self[place] for place in range(step * size, (step + 1) * size)]


def chunk_batch(chunks: Sequence[Chunk], *, apart: Documents | None) -> LmBatch:
    """Return chunks as a batch; one shorter than the others is filled up and not predicted.

    Args:
        chunks: of one length, but for the last.
        apart: how a model is told of documents, None to attend across them.
    """
    length = max(len(chunk.ids) for chunk in chunks)
    tokens_BT = _stacked([chunk.ids for chunk in chunks], length, fill=0)
    documents_BT = None
    if apart is not None:
        documents_BT = _stacked([chunk.document_ids for chunk in chunks], length, fill=-1)
    batch = next_token_batch(tokens_BT, documents_BT, apart or BY_POSITIONS)
    for row, chunk in enumerate(chunks):
        batch.targets_BT[row, len(chunk.ids) - 1 :] = IGNORED
    return batch


def _stacked(rows: Sequence[Any], length: int, *, fill: int) -> torch.Tensor:
    stacked = np.full((len(rows), length), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = row
    return torch.from_numpy(stacked)
