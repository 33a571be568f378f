"""An index of passages by BM25, made once for a corpus and kept by the digest of its content.

bm25s keeps what each word gives each passage, so that a query adds up the columns of its words
(Lù 2024, "BM25S: orders of magnitude faster lexical search"). What its words are is told by
`words`; passages of equal score come in the order of the corpus.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.errors import ArtifactError, SourceError, StorageError
from data.extras import RETRIEVAL, require_packages
from data.json_lines import read_json_lines, write_json_lines
from data.retrieval.passages import Passage, read_passages
from data.retrieval.words import words_of
from data.sources.fingerprint import fingerprint
from data.sources.read import ReadReport
from data.sources.source import Source
from data.storage import storage_errors, sync_tree
from data.words import counted

if TYPE_CHECKING:
    from bm25s import BM25

_VERSION = 1
"""Of how passages and words are made; another one makes an index anew."""
_PASSAGES = "passages.jsonl"


class Hit(NamedTuple):
    """A passage that shares words with a query.

    Attributes:
        text: the passage.
        where: its file with line or row, or its part of the world.
        score: of BM25; above 0.
    """

    text: str
    where: str
    score: float


class Index:
    """Passages by their words.

    Args:
        passages: at least one with a word.
        scores: what each word gives each passage, by bm25s.
        content: digest of all that they follow from, where it is known.
    """

    def __init__(self, passages: Sequence[Passage], scores: BM25, content: str = "") -> None:
        self.passages, self.content = passages, content
        self._scores = scores

    def search(self, query: str, count: int) -> list[Hit]:
        """Return at most `count` passages that share words with a query, the best first."""
        known = self._scores.vocab_dict
        ids = sorted({known[word] for word in words_of(query) if word in known})
        if not ids:
            return []
        scores_P, found = self._scores.get_scores_from_ids(ids), list[Hit]()
        # So few times the best of all takes less than to part them, and ties go by their place.
        while len(found) < count and scores_P[best := int(scores_P.argmax())] > 0:
            found.append(Hit(*self.passages[best], float(scores_P[best])))
            scores_P[best] = 0
        return found


def open_index(
    sources: Sequence[Source],
    *,
    words: int,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Index:
    """Return the index of corpora: what was kept of the same content, else a new one.

    Args:
        sources: the corpora.
        words: most words of a passage.
        cache: folder of indexes; one in the user's cache when not given.
        say: takes a line for the reader.

    Raises:
        SourceError: a corpus can't be read, or holds no words.
        UsageError: bm25s is not installed.
    """
    require_packages(*RETRIEVAL, extra="retrieval", what="retrieval")
    digests = [fingerprint(source) for source in sources]
    windows = [[s.format, s.columns and dict(s.columns), s.skip, s.limit] for s in sources]
    follows_from = json.dumps([_VERSION, words, digests, windows])
    content = hashlib.sha256(follows_from.encode()).hexdigest()
    folder = (cache or cache_folder()) / content[:32]
    with contextlib.suppress(ArtifactError, OSError, ValueError, KeyError):  # none, or damaged
        index = _load(folder, content)
        say(f"index of {counted(len(index.passages), 'passage')}: kept from before")
        return index
    reports: list[ReadReport] = []
    index = build_index([*read_passages(sources, words=words, reports=reports)], content)
    for line in (line for report in reports for line in report.lines()):
        say(f"retrieve: {line}")
    say(f"index of {counted(len(index.passages), 'passage')}")
    try:
        _keep(index, folder)
    except StorageError as error:
        say(f"the index is not kept: {error}")
    return index


def cache_folder() -> Path:
    """Return where indexes are kept: `rlhf/retrieval` in the user's cache."""
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(place) / "rlhf" / "retrieval"


def build_index(passages: Sequence[Passage], content: str = "") -> Index:
    """Return the index of passages; those without a word are left out.

    Raises:
        SourceError: none has a word.
    """
    import bm25s

    held, ids, known = [], [], dict[str, int]()
    for passage in passages:
        words = words_of(passage.text)
        if words:
            held.append(passage)
            # In the order of the corpus: the same index every time.
            ids.append([known.setdefault(word, len(known)) for word in words])
    if not held:
        raise SourceError("the corpus holds no words to look anything up by; name another one")
    scores = bm25s.BM25()
    scores.index((ids, known), create_empty_token=False, show_progress=False)
    return Index(held, scores, content)


def _keep(index: Index, folder: Path) -> None:
    """Write an index so that it is there whole or not at all; another process may do the same."""
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as place:
            made = Path(place) / folder.name
            index._scores.save(made, show_progress=False)
            write_json_lines(made / _PASSAGES, (passage._asdict() for passage in index.passages))
            sync_tree(made)
            if folder.exists():  # damaged, or just made by another
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(FileExistsError):
                os.rename(made, folder)


def _load(folder: Path, content: str) -> Index:
    from bm25s import BM25

    scores = BM25.load(folder, mmap=True, allow_pickle=False)
    passages = [Passage(row["text"], row["where"]) for row in read_json_lines(folder / _PASSAGES)]
    if len(passages) != scores.scores["num_docs"]:
        raise ArtifactError(f"{folder} is damaged")
    return Index(passages, scores, content)
