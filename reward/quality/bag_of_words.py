"""A Bradley-Terry model over bags of words: what preferences give away without any reading.

A completion's score is a weighted sum of log(1 + how often it says a word), and the better one of a
pair wins with sigmoid(difference). A reward model that does not beat it has learnt which words
annotators like.

Source: Bradley and Terry 1952; logistic regression with a ridge of 20/2 |w|^2, fitted by L-BFGS. Of
1, 5, 20 and 60 that was the best ridge, or near it, on five sets of human preferences (65 to 1,800
prompts).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.records import Ranking, prompt_hash
from reward.quality.pairs import strict_pairs

FOLDS = 5
FEWEST = 20
"""Prompts from which on folds of them tell something."""
MOST = 20_000
"""Rankings that are learnt from; more change little but the time."""
_WORD = re.compile(r"\w+|[^\w\s]")
_COMMON = 2
"""Completions that a word occurs in at least."""
_VOCABULARY = 50_000


@dataclass(frozen=True)
class BagOfWords:
    """Words with their places and weights."""

    places: dict[str, int]
    weights_V: NDArray[np.float64]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the score of each text."""
        found: list[float] = (_counts(texts, self.places) @ self.weights_V).tolist()
        return found


def fit(rankings: Sequence[Ranking], *, ridge: float = 20.0) -> BagOfWords | None:
    """Return the model of some rankings' strict pairs; None where there are none.

    Args:
        rankings: to learn; the first `MOST` are.
        ridge: how strongly weights are drawn to 0.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    rankings = rankings[:MOST]
    texts = [text for r in rankings for text in r.completions]
    starts = np.cumsum([0, *(len(r.completions) for r in rankings)])
    pairs_N2 = np.array(
        [
            (start + better, start + worse)
            for start, r in zip(starts.tolist(), rankings, strict=False)
            for better, worse in strict_pairs(r.ranks)
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    spoken = Counter(word for text in texts for word in dict.fromkeys(_words(text)))
    usual = (word for word, count in spoken.most_common(_VOCABULARY) if count >= _COMMON)
    places = {word: place for place, word in enumerate(usual)}
    if not len(pairs_N2) or not places:
        return None
    counts_CV = _counts(texts, places)
    better_N, worse_N = pairs_N2.T

    def loss(weights_V: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores_C = counts_CV @ weights_V
        differences_N = scores_C[better_N] - scores_C[worse_N]
        wrong_N = expit(-differences_N)
        slope_C = np.bincount(worse_N, wrong_N, len(texts)) - np.bincount(
            better_N, wrong_N, len(texts)
        )
        value = np.logaddexp(0, -differences_N).sum() + ridge / 2 * weights_V @ weights_V
        return float(value), counts_CV.T @ slope_C + ridge * weights_V

    found = minimize(loss, np.zeros(len(places)), jac=True, method="L-BFGS-B")
    return BagOfWords(places, found.x)


def scores_by_folds(rankings: Sequence[Ranking]) -> list[list[float]] | None:
    """Return the scores of each ranking's completions by a model of the other folds of prompts.

    None below `FEWEST` prompts, or where a fold's others have no strict pair.
    """
    keys = [prompt_hash(r.prompt) for r in rankings]
    order = {key: place for place, key in enumerate(sorted(set(keys)))}
    if len(order) < FEWEST:
        return None
    folds = [order[key] % FOLDS for key in keys]
    found: list[list[float]] = [[] for _ in rankings]
    for fold in range(FOLDS):
        others = [r for r, mine in zip(rankings, folds, strict=True) if mine != fold]
        model = fit(others)
        if model is None:
            return None
        for place in (place for place, mine in enumerate(folds) if mine == fold):
            found[place] = model.scores(rankings[place].completions)
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _counts(texts: Sequence[str], places: dict[str, int]) -> Any:
    """Return log(1 + count) of each known word of each text, a sparse matrix (C, V)."""
    from scipy.sparse import csr_array

    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        for word, count in Counter(_words(text)).items():
            if word in places:
                rows.append(row)
                columns.append(places[word])
                values.append(np.log1p(count))
    return csr_array((values, (rows, columns)), shape=(len(texts), len(places)))
