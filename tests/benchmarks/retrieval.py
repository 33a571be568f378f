"""How long it takes to index passages and to search them.

    python tests/benchmarks/retrieval.py [--passages 100000] [--queries 200]

prints, in seconds of processor time, reading and indexing the corpus of the embedded world, and the
index of passages of its tongue, whose words fall off as those of natural text; then a search there,
by the processor and by the clock, the median and the slowest of queries of ten words that stand
together in the text.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from data.retrieval.index import build_index
from data.retrieval.passages import Passage, read_passages
from data.sources.source import Source
from data.world.tongue import WORDS, write_tongue

T = TypeVar("T")
CUT = 16
"""Words of a passage of the tongue."""


def timed(what: Callable[[], T], clock: Callable[[], float] = time.process_time) -> tuple[T, float]:
    start = clock()
    return what(), clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args()
    build_index([Passage("to warm up", "")])
    corpus = [Source(world="corpus")]
    passages, read = timed(lambda: [*read_passages(corpus, words=50, reports=[])])
    _, indexed = timed(lambda: build_index(passages))
    print(
        f"the embedded corpus, {len(passages):,} passages: read {read:.2f} s, index {indexed:.2f} s"
    )
    documents = write_tongue(0, given.passages * CUT // WORDS)
    words = [document.split() for document in documents]
    cut = [
        Passage(" ".join(document[at : at + CUT]), f"{place}")
        for place, document in enumerate(words)
        for at in range(0, WORDS, CUT)
    ]
    index, indexed = timed(lambda: build_index(cut))
    print(f"{len(cut):,} passages: index {indexed:.2f} s")
    rng = random.Random(0)
    queries = [" ".join(rng.choice(words)[3:13]) for _ in range(given.queries)]
    index.search(queries[0], 3)
    for clock in (time.process_time, time.perf_counter):
        seconds = [timed(partial(index.search, query, 3), clock)[1] for query in queries]
        median, slowest = 1000 * statistics.median(seconds), 1000 * max(seconds)
        print(f"a search, {clock.__name__}: {median:.2f} ms, the slowest {slowest:.2f} ms")


if __name__ == "__main__":
    main()
