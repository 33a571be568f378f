"""The index: BM25 by hand, ties in order, and what is kept on disk."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from data.errors import SourceError, UsageError
from data.retrieval.index import Index, build_index, open_index
from data.retrieval.passages import Passage
from data.sources.source import Source


def of(*texts: str) -> Index:
    return build_index([Passage(text, f"x:{n}") for n, text in enumerate(texts, start=1)])


def test_scores_are_those_of_bm25() -> None:
    index = of("a goat", "a goat and a goat", "a hen of hers")
    # Lucene's BM25 without the factor of k1 + 1: idf tf / (k1 (1 - b + b length / mean) + tf).
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    twice, once = (
        idf * tf / (1.5 * (0.25 + 0.75 * n / (11 / 3)) + tf) for tf, n in ((2, 5), (1, 2))
    )
    found = index.search("GOAT?", 3)
    assert [hit.where for hit in found] == ["x:2", "x:1"]
    assert [hit.score for hit in found] == pytest.approx([twice, once], rel=1e-5)


def test_equal_scores_come_in_the_order_of_the_corpus() -> None:
    texts = [f"goat {word}" for word in "ponmlkjihgfedcba"]
    for count in (1, 3, 16, 40):
        assert [hit.where for hit in of(*texts).search("the goat", count)] == [
            f"x:{n}" for n in range(1, min(count, 16) + 1)
        ]


def test_single_letters_numbers_and_common_words_are_found() -> None:
    index = of("B is 7", "A is 8", "the who")
    assert [index.search(q, 1)[0].text for q in ("b", "8", "The Who")] == [
        "B is 7",
        "A is 8",
        "the who",
    ]
    assert index.search("nothing of it", 3) == index.search("", 3) == index.search("b", 0) == []


def test_a_search_is_the_full_sort() -> None:
    draw = np.random.default_rng(0)
    words = [f"w{n}" for n in range(30)]
    index = of(*(" ".join(draw.choice(words, draw.integers(1, 9))) for _ in range(400)))
    for _ in range(20):
        query = " ".join(draw.choice(words, 4))
        everything = index.search(query, 400)
        assert [hit.score for hit in everything] == sorted(
            (hit.score for hit in everything), reverse=True
        )
        assert index.search(query, 5) == everything[:5]


def test_an_index_is_kept_by_content(tmp_path: Path) -> None:
    corpus, cache, said = tmp_path / "corpus.txt", tmp_path / "cache", list[str]()
    corpus.write_text("Mira keeps a goat.\nBruno keeps a hen.\n")

    def opened(words: int = 4) -> Index:
        source = Source(path=str(corpus))
        return open_index([source], words=words, cache=cache, say=said.append)

    first = opened().search("who keeps a hen?", 2)
    assert first[0].text == "Bruno keeps a hen." and first[0].where == f"{corpus}:2"
    assert said.pop() == "index of 2 passages"
    assert opened().search("who keeps a hen?", 2) == first
    assert said.pop() == "index of 2 passages: kept from before"
    assert len(opened(words=2).passages) == 4  # another cut is another index
    corpus.write_text("Mira keeps a hen.\n")
    assert [hit.text for hit in opened().search("hen", 2)] == ["Mira keeps a hen."]
    assert len([*cache.iterdir()]) == 3
    assert not [path for path in cache.rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    source, said = Source(world="corpus_heldout", limit=5), list[str]()
    first = open_index([source], words=20, cache=tmp_path, say=said.append)
    (folder,) = tmp_path.iterdir()
    for name in ("data.csc.index.npy", "vocab.index.json", "params.index.json", "passages.jsonl"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        again = open_index([source], words=20, cache=tmp_path, say=said.append)
        assert said[-1] == f"index of {len(first.passages)} passages"
        assert again.search("the house", 5) == first.search("the house", 5)
        assert (folder / name).read_bytes() == whole  # the same content, the same bytes


def test_a_cache_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = list[str]()
    source = Source(world="corpus_heldout", limit=5)
    assert open_index([source], words=20, cache=tmp_path / "file", say=said.append).passages
    assert "the index is not kept: " in said[-1]


def test_a_corpus_without_words_or_without_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, signs = tmp_path / "empty.txt", tmp_path / "signs.txt"
    empty.write_text("")
    signs.write_text("... !!!\n")
    with pytest.raises(SourceError, match=r"empty\.txt: it is empty"):
        open_index([Source(path=str(empty))], words=20, cache=tmp_path)
    with pytest.raises(SourceError, match="the corpus holds no words"):
        open_index([Source(path=str(signs))], words=20, cache=tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr("data.extras.find_spec", lambda n: None if n == "bm25s" else find(n))
    with pytest.raises(UsageError, match=r"needs bm25s.*rlhf-pipeline\[retrieval\]"):
        open_index([Source(world="corpus")], words=20, cache=tmp_path)
