"""How often the majority of k answers is right, estimated without bias from n answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import comb


def majority_right(answers: Sequence[Hashable | None], right: Hashable | None, k: int) -> float:
    """Return the chance that k of n answers, drawn without putting back, have the right majority.

    Its mean over questions is maj@k, the accuracy of self-consistency with k samples (Wang et al.
    2022): the average over all subsets of k is a U-statistic, so its expectation does not depend
    on n, where a vote over the first k alone is as unbiased and much noisier. Answers of the same
    number of votes share the win; one that could not be read (None) has no vote.

    Args:
        answers: n of them, None where none could be read.
        right: the right one; None is never right.
        k: how many vote, at most n.

    >>> majority_right(["7", "7", "8"], "7", 1), majority_right(["7", "7", "8"], "7", 2)
    (0.6666666666666666, 0.6666666666666666)
    """
    counts = Counter(answers)
    silent = counts.pop(None, 0)
    mine = counts.pop(right, 0) if right is not None else 0
    others = tuple(sorted(counts.values()))
    won = 0.0
    for votes in range(1, min(mine, k) + 1):
        for size, tied, ways in _below(others, votes, k - votes):
            missing = k - votes - size
            if missing <= silent:
                won += comb(mine, votes) * ways * comb(silent, missing) / (tied + 1)
    return won / comb(len(answers), k)


@lru_cache(maxsize=4096)
def _below(counts: tuple[int, ...], votes: int, most: int) -> list[tuple[int, int, int]]:
    """Return how other answers can have no more than some votes: (votes in all, ties, ways)."""
    ways = Counter({(0, 0): 1})  # votes in all, answers that tie
    for count in counts:
        grown: Counter[tuple[int, int]] = Counter()
        for (size, tied), known in ways.items():
            for taken in range(min(count, votes, most - size) + 1):
                grown[size + taken, tied + (taken == votes)] += known * comb(count, taken)
        ways = grown
    return [(size, tied, known) for (size, tied), known in ways.items()]
