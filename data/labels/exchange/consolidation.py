"""Several annotators' labels of a task as what a reward model learns from.

Three ways:

- `annotator`: a ranking for each label; disagreement stays in the data, as InstructGPT keeps it.
- `majority`: a ranking for each task. Of each pair, more votes win, equal votes tie; the score of
  a completion is the pairs it wins minus those it loses (Copeland, 1951), and equal scores tie. A
  circle of majorities (A over B over C over A) thus becomes a tie: three votes are no ground to
  break it. If everybody puts A above B, so does the result, and a single label comes out as it
  went in.
- `soft`: the majority's ranking, and in `probabilities` the share of annotators who prefer each
  completion to each other one (a tie gives half to both): targets for the reward stage's loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean
from typing import Literal

from data.labels.exchange.rankings_file import VOTES, plain_ranking
from data.labels.records import LabelRow, copeland_ranks
from data.records import Ranking

Consolidation = Literal["per_annotator", "majority", "soft"]


def pair_votes(rankings: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the votes for each completion over each other one, K rows of K; ties give half.

    Args:
        rankings: each annotator's ranks of the same K completions, 1 is best.

    Raises:
        ValueError: no rankings, or of different lengths.
    """
    if not rankings or len({len(ranks) for ranks in rankings}) != 1:
        raise ValueError("votes take one or more rankings of the same completions")
    places = range(len(rankings[0]))
    return [
        [
            0.0 if i == j else sum(1.0 if r[i] < r[j] else 0.5 * (r[i] == r[j]) for r in rankings)
            for j in places
        ]
        for i in places
    ]


def majority_ranks(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Return dense ranks by Copeland's score over pairwise majorities; see the module."""
    votes = pair_votes(rankings)
    pairs = permutations(range(len(votes)), 2)
    return copeland_ranks(((i, j) for i, j in pairs if votes[i][j] > votes[j][i]), len(votes))


def pair_probabilities(rankings: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the share of annotators who prefer completion i to j, K rows of K, 1/2 with itself."""
    votes = pair_votes(rankings)
    n = len(rankings)
    return [
        [0.5 if i == j else vote / n for j, vote in enumerate(row)] for i, row in enumerate(votes)
    ]


@dataclass(frozen=True)
class Judged:
    """A ranking and what else was said of its completions.

    Attributes:
        ranking: one annotator's, or the majority's.
        shares: of the annotators, who prefer completion i to j; a tie gives half to both.
        ratings: of each completion, the mean of those given; empty when none was asked.
        strength: of a pair, towards the better one, the mean of those given; None when not asked.
    """

    ranking: Ranking
    shares: list[list[float]]
    ratings: list[float]
    strength: float | None


def consolidate(labels: Iterable[LabelRow], *, how: Consolidation) -> list[Judged]:
    """Return rankings of labels.

    Args:
        labels: last revisions of the labels to take (`campaign.label_filter.labels_of`);
            all of them vote.
        how: "per_annotator", "majority" or "soft".
    """
    if how == "per_annotator":
        return [_judged(plain_ranking(row), [row]) for row in labels]
    by_task: dict[str, list[LabelRow]] = {}
    for row in labels:
        by_task.setdefault(row.assignment.task.id, []).append(row)
    return [_judged(_joined(rows, soft=how == "soft"), rows) for rows in by_task.values()]


def _judged(ranking: Ranking, rows: list[LabelRow]) -> Judged:
    submissions = [row.label.submission for row in rows]
    rated = [one.ratings for one in submissions if one.ratings]
    strengths = [
        (1 if one.ranks[0] == ranking.ranks[0] else -1) * one.strength
        for one in submissions
        if one.strength is not None
    ]
    return Judged(
        ranking=ranking,
        shares=pair_probabilities([one.ranks for one in submissions]),
        ratings=[fmean(column) for column in zip(*rated, strict=True)],
        strength=max(0.0, fmean(strengths)) if strengths else None,
    )


def _joined(rows: list[LabelRow], *, soft: bool) -> Ranking:
    first, given = plain_ranking(rows[0]), [row.label.submission.ranks for row in rows]
    votes = {"annotators": [row.annotator.id for row in rows]}
    return dataclasses.replace(
        first,
        ranks=majority_ranks(given),
        id=rows[0].assignment.task.new.key,
        annotator="majority",
        meta={**first.meta, VOTES: votes},
        probabilities=pair_probabilities(given) if soft else [],
    )
