"""Held-out rankings as pairs of completions, each with its scores and what tells it apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from data.records import Ranking, prompt_hash


@dataclass(frozen=True)
class ScoredRanking:
    """A held-out ranking with the scores of its completions, bias included.

    Attributes:
        ranking: what annotators said.
        scores: of its completions.
        words: what a bag of words that never saw its prompt gives them, None where there is none.
    """

    ranking: Ranking
    scores: Sequence[float]
    words: Sequence[float] | None = None


@dataclass(frozen=True)
class ScoredPair:
    """Two completions of a prompt that an annotator ranked strictly.

    Attributes:
        prompt: digest of the prompt; pairs of a prompt depend on each other.
        better: score of the preferred completion.
        worse: score of the other.
        better_length: characters of the preferred completion.
        worse_length: characters of the other.
        agreement: share of annotators that share this preference, None where one was asked.
        ranks: of the two, 1 is best.
        places: different ranks in the whole ranking.
        subset: column `subset` of the row, None where it has none.
    """

    prompt: str
    better: float
    worse: float
    better_length: int
    worse_length: int
    agreement: float | None = None
    ranks: tuple[int, int] = (1, 2)
    places: int = 2
    subset: str | None = None

    @property
    def length_difference(self) -> float:
        """Better minus worse length, as a share of the longer one: from -1 to 1."""
        longer = max(self.better_length, self.worse_length)
        return (self.better_length - self.worse_length) / longer if longer else 0.0


def strict_pairs(ranks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the places of each strictly ranked pair, the better one first."""
    for a, b in combinations(range(len(ranks)), 2):
        if ranks[a] != ranks[b]:
            yield (a, b) if ranks[a] < ranks[b] else (b, a)


def scored_pairs(
    rankings: Sequence[Ranking], scores: Sequence[Sequence[float]]
) -> list[ScoredPair]:
    """Return the strictly ranked pairs of all rankings.

    The agreement of a pair is the number `meta["agreement"]` of its ranking where there is one,
    else counted, where several annotators ranked the same two completions of a prompt.

    Args:
        rankings: held-out rankings.
        scores: the scores of each ranking's completions.
    """
    pairs = []
    votes = _votes(rankings)
    for ranking, values in zip(rankings, scores, strict=True):
        key, ranks = prompt_hash(ranking.prompt), ranking.ranks
        for better, worse in strict_pairs(ranks):
            texts = ranking.completions[better], ranking.completions[worse]
            pairs.append(
                ScoredPair(
                    prompt=key,
                    better=values[better],
                    worse=values[worse],
                    better_length=len(texts[0]),
                    worse_length=len(texts[1]),
                    agreement=_agreement(ranking, votes[key, *texts], votes[key, *texts[::-1]]),
                    ranks=(ranks[better], ranks[worse]),
                    places=len(set(ranks)),
                    subset=_subset(ranking),
                )
            )
    return pairs


def _votes(rankings: Sequence[Ranking]) -> dict[tuple[str, ...], float]:
    """Count how many annotators prefer one text over another, ties half to each."""
    votes: dict[tuple[str, ...], float] = defaultdict(float)
    for ranking in rankings:
        key = prompt_hash(ranking.prompt)
        rows = zip(ranking.completions, ranking.ranks, strict=True)
        for (text_a, rank_a), (text_b, rank_b) in combinations(rows, 2):
            won = 0.5 if rank_a == rank_b else float(rank_a < rank_b)
            votes[key, text_a, text_b] += won
            votes[key, text_b, text_a] += 1 - won
    return votes


def _agreement(ranking: Ranking, votes_for: float, against: float) -> float | None:
    given = ranking.meta.get("agreement")
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    total = votes_for + against
    return votes_for / total if total > 1 else None


def _subset(ranking: Ranking) -> str | None:
    subset = ranking.meta.get("subset")
    return None if subset in (None, "") else str(subset)


def pair_rows(name: str, rows: Sequence[ScoredRanking]) -> Iterator[dict[str, Any]]:
    """Yield every strictly ranked pair as JSON, so that the figures can be counted again.

    A share is counted over these rows: `better_score` above `worse_score`, half where equal.

    Args:
        name: of the set that they belong to.
        rows: held-out rankings with their scores.
    """
    pairs = iter(scored_pairs([r.ranking for r in rows], [r.scores for r in rows]))
    for row in rows:
        ranking = row.ranking
        for a, b in strict_pairs(ranking.ranks):
            pair = next(pairs)
            more: dict[str, Any] = {"agreement": pair.agreement, "subset": pair.subset}
            if row.words is not None:
                more |= {"better_words": row.words[a], "worse_words": row.words[b]}
            yield {
                "set": name,
                "id": ranking.id,
                "annotator": ranking.annotator,
                "prompt": ranking.prompt,
                "better": ranking.completions[a],
                "worse": ranking.completions[b],
                "better_ended": ranking.endings[a],
                "worse_ended": ranking.endings[b],
                "better_score": pair.better,
                "worse_score": pair.worse,
                "ranks": pair.ranks,
                "places": pair.places,
                **{key: value for key, value in more.items() if value is not None},
            }
