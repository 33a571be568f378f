"""How good what a head says of held-out rows is, with intervals, and beside it what costs nothing.

The figure of all heads is an F1: the mean over classes (classify), of the words of an answer
(span; exact match beside it), of entities whose place and label are right (tag). Intervals are a
bootstrap over rows, of shares Wilson's. Floors know no row that is judged: the commonest class, the
commonest answer, and of each word the tag that it has most often.

Words of answers are compared as in SQuAD (Rajpurkar et al. 2016): without case, articles, signs.

Shapes: P rows, M counts of a row, R resamples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.intervals import Estimate, bootstrap_clusters, wilson
from data.records import Extract, Labelled, Tagged
from data.sources.labelled import from_tags
from pipeline.stages.finetune.rows import Learned

Counts = NDArray[np.float64]
Prediction = Mapping[str, Any]
RESAMPLES = 2000
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WORD = re.compile(r"\w+|[^\w\s]")


def figures(
    rows: Sequence[Learned],
    predictions: Sequence[Prediction],
    floor: Sequence[Prediction],
    labels: Sequence[str],
    *,
    seed: int,
) -> dict[str, Estimate]:
    """Return the figures of predictions, of the floor, and how much the one F1 exceeds the other.

    Args:
        rows: that were judged, of one head.
        predictions: what the model says of each.
        floor: what costs nothing.
        labels: of a classifier.
        seed: of the bootstrap.
    """
    options: dict[str, Any] = {"resamples": RESAMPLES, "seed": seed}
    mine, theirs = (counts(rows, given, labels) for given in (predictions, floor))
    width = mine.shape[1]
    found = _shares(rows, mine)
    found["f1"] = bootstrap_clusters(mine, statistic=f1_of(rows), **options)
    found |= {f"floor_{name}": each for name, each in _shares(rows, theirs).items()}
    found["floor_f1"] = bootstrap_clusters(theirs, statistic=f1_of(rows), **options)

    def gain(sums_RM: Counts) -> Counts:
        score = f1_of(rows)
        beyond: Counts = score(sums_RM[:, :width]) - score(sums_RM[:, width:])
        return beyond

    both = np.concatenate([mine, theirs], axis=1)
    found["f1_over_floor"] = bootstrap_clusters(both, statistic=gain, **options)
    return found


def counts(
    rows: Sequence[Learned], predictions: Sequence[Prediction], labels: Sequence[str]
) -> Counts:
    """Return what is counted of each row (P, M).

    Of a class true and false positives and misses; of an answer exact match, F1 and 1; of a text's
    entities those that are right, given and there.
    """
    places = {label: place for place, label in enumerate(labels)}
    counted = np.zeros((len(rows), 3 * len(labels) if isinstance(rows[0], Labelled) else 3))
    for line, row, given in zip(counted, rows, predictions, strict=True):
        if isinstance(row, Labelled):
            told, gold = places[given["label"]], places[row.label]
            line[3 * told + (told != gold)] += 1
            line[3 * gold + 2] += told != gold
        elif isinstance(row, Extract):
            pairs = [(given["answer"], answer) for _, answer in row.answers]
            line[:] = max(exact(*pair) for pair in pairs), max(word_f1(*p) for p in pairs), 1
        else:
            told_spans, gold_spans = set(map(tuple, given["spans"])), set(row.spans)
            line[:] = len(told_spans & gold_spans), len(told_spans), len(gold_spans)
    return counted


def f1_of(rows: Sequence[Learned]) -> Any:
    """Return what makes an F1 (R,) of sums (R, M) of what `counts` gives of such rows."""
    if isinstance(rows[0], Labelled):
        return _macro_f1
    return _mean_f1 if isinstance(rows[0], Extract) else _entity_f1


def _macro_f1(sums_RM: Counts) -> Counts:
    """Return the mean F1 of the classes that occur or are told."""
    right, wrong, missed = (sums_RM[:, place::3] for place in range(3))
    there = 2 * right + wrong + missed
    scores = np.where(there > 0, 2 * right / np.maximum(there, 1), 0.0)
    mean: Counts = scores.sum(1) / np.maximum((there > 0).sum(1), 1)
    return mean


def _mean_f1(sums_RM: Counts) -> Counts:
    mean: Counts = sums_RM[:, 1] / sums_RM[:, 2]
    return mean


def _entity_f1(sums_RM: Counts) -> Counts:
    score: Counts = 2 * sums_RM[:, 0] / np.maximum(sums_RM[:, 1] + sums_RM[:, 2], 1)
    return score


def _shares(rows: Sequence[Learned], counted: Counts) -> dict[str, Estimate]:
    if isinstance(rows[0], Labelled):
        return {"accuracy": wilson(float(counted[:, ::3].sum()), len(rows))}
    if isinstance(rows[0], Extract):
        return {"exact_match": wilson(float(counted[:, 0].sum()), len(rows))}
    right, given, there = counted.sum(0).tolist()
    return {"precision": wilson(right, int(given)), "recall": wilson(right, int(there))}


def floor_predictions(
    learned: Sequence[Learned], judged: Sequence[Learned]
) -> list[dict[str, Any]]:
    """Return what is said of each row without reading it, by the commonest of the learned ones."""
    tags: dict[str, Counter[str]] = {}
    common: Counter[str] = Counter()
    for row in learned:
        if isinstance(row, Labelled):
            common[row.label] += 1
        elif isinstance(row, Extract):
            common[row.answers[0][1]] += 1
        else:
            for start, stop, tag in _word_tags(row):
                tags.setdefault(row.text[start:stop], Counter())[tag] += 1
    # Of two as common ones that which comes first by its letters, whatever the order of rows.
    first = {word: min(held, key=lambda tag: (-held[tag], tag)) for word, held in tags.items()}
    commonest = min(common, key=lambda name: (-common[name], name), default="")
    found: list[dict[str, Any]] = []
    for row in judged:
        if isinstance(row, Tagged):
            words = [(match.start(), match.end()) for match in _WORD.finditer(row.text)]
            named = [first.get(row.text[start:stop], "O") for start, stop in words]
            found.append({"spans": from_tags(zip(words, named, strict=True))})
        else:
            found.append({"label" if isinstance(row, Labelled) else "answer": commonest})
    return found


def _word_tags(row: Tagged) -> list[tuple[int, int, str]]:
    """Return the words of a text with their tags."""
    found = []
    for match in _WORD.finditer(row.text):
        start, stop = match.span()
        span = next((s for s in row.spans if s[0] < stop and start < s[1]), None)
        tag = "O" if span is None else f"{'B' if start <= span[0] else 'I'}-{span[2]}"
        found.append((start, stop, tag))
    return found


def exact(given: str, gold: str) -> bool:
    """Tell whether two answers have the same words."""
    return _words(given) == _words(gold)


def word_f1(given: str, gold: str) -> float:
    """Return the F1 of the words of an answer."""
    mine, theirs = _words(given), _words(gold)
    if not mine or not theirs:
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs))


def _words(answer: str) -> list[str]:
    bare = "".join(sign for sign in answer.lower() if sign not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()
