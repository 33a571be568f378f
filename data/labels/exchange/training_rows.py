"""Rows for trainers that know no rankings: pairs, ties, and answers that are good or bad.

`weight` of a row is 1 / (rows of its prompt), so that a prompt counts once whatever its number of
completions and annotators. TRL's trainers pass over columns they don't know, `weight` and
`probability` among them: weigh the loss by them in a trainer of your own. `margin` is used by TRL's
`RewardTrainer`, which asks that the chosen answer scores so much higher.

Margins lie in [0, 1]:

- `strength`: the strength of a pair / 3, as Llama 2's small margins (Touvron et al. 2023, table 27)
- `ratings`: difference of the ratings / 6, not below 0
- `ranks`: difference of the ranks / the largest difference in the ranking
- `votes`: share of annotators for the chosen answer minus share for the other
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any, Literal

from data.errors import SourceError
from data.labels.exchange.consolidation import Judged
from data.labels.records import RATINGS, STRENGTHS
from data.records import ENDED, Message, Prompt, Ranking, prompt_hash

Margin = Literal["none", "strength", "ratings", "ranks", "votes"]
MIDDLE = (RATINGS[0] + RATINGS[-1]) / 2
"""The rating that is neither good nor bad."""


def as_turns(prompt: Prompt) -> list[Message]:
    """Return a prompt as turns of a chat, a plain one as the user's, unchanged."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def preference_rows(
    judged: Iterable[Judged],
    *,
    implicit: bool,
    margin: Margin,
    soft: bool,
    left_out: Counter[str],
) -> Iterator[tuple[Prompt, dict[str, Any]]]:
    """Yield each strictly ordered pair as a conversational preference row of TRL.

    Args:
        judged: rankings.
        implicit: `chosen` and `rejected` are whole dialogues, and there is no `prompt`.
        margin: which margin a row holds.
        soft: a row holds the share of annotators for the chosen answer as `probability`.
        left_out: where ties are counted, which such rows can't hold.

    Raises:
        SourceError: the labels don't hold what the margin is made of.
    """
    held = list(judged)
    pairs = [list(_strict_pairs(one)) for one in held]
    n_pairs: Counter[str] = Counter()
    for one, ordered in zip(held, pairs, strict=True):
        n_pairs[prompt_hash(one.ranking.prompt)] += len(ordered)
        size = len(one.ranking.ranks)
        tied = size * (size - 1) // 2 - len(ordered)
        if tied:
            left_out["tied pairs (see the export of ties)"] += tied
    for one, ordered in zip(held, pairs, strict=True):
        ranking, opening = one.ranking, as_turns(one.ranking.prompt)
        for better, worse in ordered:
            chosen, rejected = (_answer(ranking.completions[i]) for i in (better, worse))
            row: dict[str, Any] = {"prompt": opening, "chosen": chosen, "rejected": rejected}
            if implicit:
                row = {"chosen": [*opening, *chosen], "rejected": [*opening, *rejected]}
            if margin != "none":
                row["margin"] = _margin(one, better, worse, margin)
            if soft:
                row["probability"] = one.shares[better][worse]
            if ended := _endings(ranking, better, worse):
                row[ENDED] = ended
            row["weight"] = 1 / n_pairs[prompt_hash(ranking.prompt)]
            yield ranking.prompt, row


def _endings(ranking: Ranking, first: int, second: int) -> list[bool]:
    """Return which of a pair ended by itself; empty where both did."""
    ended = [ranking.endings[first], ranking.endings[second]]
    return [] if all(ended) else ended


def _strict_pairs(judged: Judged) -> Iterator[tuple[int, int]]:
    """Yield pairs of a better and a worse completion."""
    ranks = judged.ranking.ranks
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            yield (i, j) if ranks[i] < ranks[j] else (j, i)


def _margin(judged: Judged, better: int, worse: int, margin: Margin) -> float:
    ranks = judged.ranking.ranks
    if margin == "ranks":
        return (ranks[worse] - ranks[better]) / (max(ranks) - 1)
    if margin == "votes":
        return max(0.0, judged.shares[better][worse] - judged.shares[worse][better])
    if margin == "ratings" and judged.ratings:
        apart = judged.ratings[better] - judged.ratings[worse]
        return max(0.0, apart / (RATINGS[-1] - RATINGS[0]))
    if margin == "strength" and judged.strength is not None:
        return judged.strength / STRENGTHS[-1]
    raise SourceError(
        f"margin: {margin} needs labels with {margin}, and label {judged.ranking.id} has none; "
        "use margin: ranks or votes"
    )


def tied_pairs(judged: Iterable[Judged]) -> Iterator[Ranking]:
    """Yield each tied pair as a ranking of two with equal ranks."""
    held = list(judged)
    tied = [
        (one, i, j)
        for one in held
        for i, j in combinations(range(len(one.ranking.ranks)), 2)
        if one.ranking.ranks[i] == one.ranking.ranks[j]
    ]
    counts = Counter(prompt_hash(one.ranking.prompt) for one, _, _ in tied)
    for one, i, j in tied:
        ranking = one.ranking
        yield Ranking(
            prompt=ranking.prompt,
            completions=[ranking.completions[i], ranking.completions[j]],
            ranks=[1, 1],
            annotator=ranking.annotator,
            meta={"weight": 1 / counts[prompt_hash(ranking.prompt)]},
            ended=_endings(ranking, i, j),
        )


def unpaired_rows(
    judged: Iterable[Judged], *, left_out: Counter[str]
) -> Iterator[tuple[Prompt, dict[str, Any]]]:
    """Yield answers that are good (`label` true) or bad as rows of TRL's KTO trainer.

    Where there are ratings, above the middle of the scale is good and below it bad. Where there
    are none, the best rank is good and the worst bad. What lies between is left out and counted.
    """
    held = [(one, _good(one)) for one in judged]
    counts: Counter[str] = Counter()
    for one, labels in held:
        counts[prompt_hash(one.ranking.prompt)] += sum(label is not None for label in labels)
        between = labels.count(None)
        if between:
            left_out["answers neither good nor bad"] += between
    for one, labels in held:
        ranking = one.ranking
        for text, label in zip(ranking.completions, labels, strict=True):
            if label is not None:
                yield (
                    ranking.prompt,
                    {
                        "prompt": as_turns(ranking.prompt),
                        "completion": _answer(text),
                        "label": label,
                        "weight": 1 / counts[prompt_hash(ranking.prompt)],
                    },
                )


def _good(judged: Judged) -> list[bool | None]:
    if judged.ratings:
        return [None if rating == MIDDLE else rating > MIDDLE for rating in judged.ratings]
    ranks = judged.ranking.ranks
    worst = max(ranks)
    if worst == 1:
        return [None] * len(ranks)
    return [True if rank == 1 else False if rank == worst else None for rank in ranks]
