"""Text packed into chunks of one context length, on disk, read by index.

A folder of shards holds `tokens-00000.bin`, ... (uint16 or uint32, whole chunks each),
`documents.bin` (where each document starts, uint64), `bytes.bin` (bytes of text that each chunk
predicts, uint32) and `index.json`, written last: a folder without it is not whole. Any chunk can
be read at any time, so resuming needs nothing but the index of the next one.

A document is followed by the separator, which belongs to it. A chunk begins wherever the one
before ended; the positions in it begin anew with each document.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from data.errors import ArtifactError, RecipeError, SourceError
from data.storage import storage_errors, write_atomically

FORMAT = 1
INDEX = "index.json"
_SHARD_TOKENS = 1 << 26

Ids = npt.NDArray[np.int64]


class Chunk(NamedTuple):
    """One row to train on; all arrays have the chunk's length.

    Attributes:
        ids: token ids.
        document_ids: which document of the corpus each token is of.
        position_ids: place in the document, counted from the chunk's start if it began before.
        text_bytes: bytes of text that its tokens but the first stand for (what it predicts).
    """

    ids: Ids
    document_ids: Ids
    position_ids: Ids
    text_bytes: int


@dataclass(frozen=True)
class Index:
    """What `index.json` says of a folder of shards."""

    context_length: int
    """Tokens a chunk."""
    vocabulary_size: int
    """Ids are below this."""
    dtype: str
    """uint16 or uint32."""
    chunks: int
    """Chunks in all."""
    tokens: int
    """Tokens in all chunks."""
    documents: int
    """Documents that were packed."""
    text_bytes: int
    """Bytes of text that the chunks predict; 0 when not counted."""
    tail_tokens: int
    """Tokens at the end that fill no chunk: dropped, or the last, shorter chunk."""
    tail_kept: bool
    """Whether the last chunk is a shorter one."""
    shards: tuple[int, ...]
    """Tokens of each shard."""
    version: int = FORMAT
    """Version of this layout."""


def write_shards(
    folder: str | Path,
    token_documents: Iterable[Sequence[int]],
    *,
    context_length: int,
    vocabulary_size: int,
    separator_id: int | None = None,
    start_id: int | None = None,
    token_bytes: Sequence[int] | None = None,
    keep_tail: bool = False,
    shard_tokens: int = _SHARD_TOKENS,
) -> PackedShards:
    """Write documents as chunks; they are read once and not kept in memory.

    Args:
        folder: where to; made if missing. An index that is there is removed first.
        token_documents: ids of each document, without separators.
        context_length: tokens a chunk.
        vocabulary_size: ids must be below it; decides how many bytes a token takes.
        separator_id: put after each document.
        start_id: put before each document.
        token_bytes: bytes of text each id stands for (`token_byte_lengths`), to count chunks'.
        keep_tail: keep what fills no chunk as a shorter last one; else it is dropped and counted.
        shard_tokens: tokens a file, rounded down to whole chunks.

    Returns:
        The shards, open for reading.

    Raises:
        RecipeError: the context has fewer than two tokens.
        SourceError: the documents fill no chunk.
        StorageError: the disk is full or refuses.
    """
    if context_length < 2:
        raise RecipeError(f"context_length {context_length} is too short to predict anything")
    place = Path(folder)
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        (place / INDEX).unlink(missing_ok=True)
        with _Writer(
            place, context_length, vocabulary_size, token_bytes, max(1, shard_tokens)
        ) as writer:
            for ids in token_documents:
                if len(ids):
                    head = [] if start_id is None else [start_id]
                    tail = [] if separator_id is None else [separator_id]
                    writer.add([*head, *ids, *tail])
            index = writer.finish(keep_tail)
        write_atomically(place / INDEX, json.dumps(dataclasses.asdict(index), indent=2))
    return PackedShards(place)


class _Writer:
    """Gathers tokens into chunks and chunks into shards."""

    def __init__(
        self,
        folder: Path,
        context_length: int,
        vocabulary_size: int,
        token_bytes: Sequence[int] | None,
        shard_tokens: int,
    ) -> None:
        self._folder = folder
        self._length = context_length
        self._vocabulary = vocabulary_size
        self._dtype: type[np.unsignedinteger[Any]] = (
            np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
        )
        self._bytes = None if token_bytes is None else np.asarray(token_bytes, dtype=np.int64)
        self._per_shard = max(1, shard_tokens // context_length) * context_length
        self._pending: list[npt.NDArray[Any]] = []
        self._waiting = 0
        self._starts: list[int] = []
        self._tokens = 0
        self._text_bytes = 0
        self._documents = 0
        self._shards: list[int] = []
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> _Writer:
        for name in ("documents.bin", "bytes.bin"):
            self._files[name] = open(self._folder / name, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, ids: Sequence[int]) -> None:
        """Append one document."""
        array = np.asarray(ids, dtype=np.int64)
        if array.min() < 0 or array.max() >= self._vocabulary:
            raise RecipeError(
                f"a document holds token id {int(array.max())}, the vocabulary has "
                f"{self._vocabulary}: it was not made with this tokenizer"
            )
        self._starts.append(self._tokens + self._waiting)
        self._pending.append(array.astype(self._dtype))
        self._waiting += len(array)
        if self._waiting >= min(self._per_shard, 1 << 20):
            self._flush()

    def _flush(self) -> None:
        """Write the whole chunks among what is pending."""
        tokens = np.concatenate(self._pending) if self._pending else np.empty(0, self._dtype)
        full = len(tokens) // self._length * self._length
        self._write(tokens[:full])
        self._pending, self._waiting = [tokens[full:]], len(tokens) - full
        self._files["documents.bin"].write(np.asarray(self._starts, dtype=np.uint64).tobytes())
        self._documents += len(self._starts)
        self._starts = []

    def _write(self, tokens: npt.NDArray[Any]) -> None:
        """Write whole chunks, or the tail, and the bytes of text each of them predicts."""
        if not len(tokens):
            return
        width = min(self._length, len(tokens))
        chunks = tokens.reshape(-1, width)[:, 1:]  # nothing predicts a chunk's first token
        predicted = (
            np.zeros(len(chunks), dtype=np.int64)
            if self._bytes is None
            else self._bytes[chunks].sum(axis=1)
        )
        self._text_bytes += int(predicted.sum())
        self._files["bytes.bin"].write(predicted.astype(np.uint32).tobytes())
        self._tokens += len(tokens)
        while len(tokens):
            if not self._shards or self._shards[-1] >= self._per_shard:
                self._next_shard()
            part = tokens[: self._per_shard - self._shards[-1]]
            self._files[shard_name(len(self._shards) - 1)].write(part.tobytes())
            self._shards[-1] += len(part)
            tokens = tokens[len(part) :]

    def _next_shard(self) -> None:
        if self._shards:
            _make_durable(self._files[shard_name(len(self._shards) - 1)])
        name = shard_name(len(self._shards))
        self._files[name] = open(self._folder / name, "wb")  # noqa: SIM115 - closed in __exit__
        self._shards.append(0)

    def finish(self, keep_tail: bool) -> Index:
        """Write what is left, make it durable and return the index."""
        self._flush()
        tail = self._waiting
        keeps_tail = keep_tail and tail >= 2
        if keeps_tail:
            self._write(self._pending[0])
        if not self._tokens:
            raise SourceError(
                f"the text has {tail} tokens and fills no context of {self._length}; give more "
                "text or a shorter context"
            )
        for file in self._files.values():
            _make_durable(file)
        return Index(
            context_length=self._length,
            vocabulary_size=self._vocabulary,
            dtype=np.dtype(self._dtype).name,
            chunks=-(-self._tokens // self._length),
            tokens=self._tokens,
            documents=self._documents,
            text_bytes=self._text_bytes,
            tail_tokens=tail,
            tail_kept=keeps_tail,
            shards=tuple(self._shards),
        )


def _make_durable(file: BinaryIO) -> None:
    if not file.closed:
        file.flush()
        os.fsync(file.fileno())
        file.close()


def shard_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"tokens-{number:05d}.bin"


class PackedShards:
    """Chunks in a folder of shards, by index; the files are mapped, not read."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder that `write_shards` wrote.

        Raises:
            ArtifactError: it is not whole, damaged, or of another version.
        """
        self.folder = Path(folder)
        self.about = _read_index(self.folder)
        width = np.dtype(self.about.dtype).itemsize
        sizes = {shard_name(i): count * width for i, count in enumerate(self.about.shards)}
        sizes["bytes.bin"] = self.about.chunks * 4
        sizes["documents.bin"] = self.about.documents * 8
        for name, size in sizes.items():
            file = self.folder / name
            stored = file.stat().st_size if file.is_file() else None
            if stored != size:
                state = "is missing" if stored is None else f"has {stored} bytes, not {size}"
                raise ArtifactError(f"packed text {self.folder} is damaged: {name} {state}")
        self._shards = [
            np.memmap(self.folder / shard_name(i), dtype=np.dtype(self.about.dtype), mode="r")
            for i in range(len(self.about.shards))
        ]
        self._first = [sum(self.about.shards[:i]) for i in range(len(self.about.shards))]
        self._starts = np.memmap(self.folder / "documents.bin", dtype=np.uint64, mode="r")
        self._text_bytes = np.memmap(self.folder / "bytes.bin", dtype=np.uint32, mode="r")

    def __len__(self) -> int:
        return self.about.chunks

    def __getitem__(self, number: int) -> Chunk:
        """Return one chunk; negative numbers count from the end."""
        place = number + len(self) if number < 0 else number
        if not 0 <= place < len(self):
            raise IndexError(f"chunk {number} of {len(self)}")
        # Shards hold whole chunks, so that each stands in one of them.
        begin = place * self.about.context_length
        shard = bisect.bisect_right(self._first, begin) - 1
        offset = begin - self._first[shard]
        stored = self._shards[shard][offset : offset + self.about.context_length]
        ids = np.array(stored, dtype=np.int64, subok=False)
        places = begin + np.arange(len(ids), dtype=np.int64)
        # The documents that begin up to the chunk's first token and up to its last: all it holds.
        first, last = np.searchsorted(
            self._starts, np.asarray([begin, places[-1]], dtype=np.uint64), side="right"
        )
        starts = np.array(self._starts[first - 1 : last], dtype=np.int64, subok=False)
        local = np.searchsorted(starts, places, side="right") - 1
        return Chunk(
            ids=ids,
            document_ids=local + (int(first) - 1),
            position_ids=places - np.maximum(starts[local], begin),
            text_bytes=int(self._text_bytes[place]),
        )

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks in order."""
        return (self[i] for i in range(len(self)))


def _read_index(folder: Path) -> Index:
    file = folder / INDEX
    if not file.is_file():
        raise ArtifactError(f"{folder} holds no whole packed text: {INDEX} is missing")
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        version = stored.get("version")
        if version != FORMAT:
            raise ArtifactError(f"{file} is of version {version}, this is {FORMAT}; pack again")
        return Index(**{**stored, "shards": tuple(stored["shards"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{file} is damaged: {error}") from error
