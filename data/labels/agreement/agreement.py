"""How far annotators agree, with each other, with themselves and with known answers.

Pure functions of ranks. Each takes what was said of tasks as `TaskRanks`; intervals are over
prompts (`data.intervals`) unless said otherwise. Data that leave a figure undefined give one
without a value and with the reason in words.

Of a pair of completions an annotator says one of three things: the first is better, the second is
better, or neither (a tie). `outcomes` writes them 1, -1 and 0.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.intervals import clustered_figure, clustered_ratio, wilson
from data.labels.agreement.figures import Figure, figure, missing, share
from data.words import counted

TOO_FEW = "too few labels: no task has labels of two annotators"
_VALUES = (1, 0, -1)


class TaskRanks(NamedTuple):
    """What annotators said of one task.

    Attributes:
        prompt: the same for tasks that hang together; what the bootstrap draws.
        task: name of the task.
        ranks: ranks of its completions by annotator, 1 is best, equal is a tie.
    """

    prompt: str
    task: str
    ranks: Mapping[str, Sequence[int]]


def outcomes(ranks: Sequence[float]) -> list[int]:
    """Return what ranks say of each pair i < j: 1 when i is better, -1 when j is, 0 for a tie.

    >>> outcomes([1, 2, 2])
    [1, 1, 0]
    """
    return [(b > a) - (b < a) for a, b in combinations(ranks, 2)]


def pair_agreement(
    *,
    tasks: Iterable[TaskRanks],
    ties: bool,
    annotator: str | None = None,
) -> Figure:
    """Share of comparisons in which two annotators say the same of a pair of completions.

    A comparison is two annotators of one task and two of its completions; each counts once.

    Args:
        tasks: what was said.
        ties: True takes a tie as a third answer, so that a tie and a preference disagree; False
            counts only pairs on which neither of the two annotators says tie.
        annotator: only comparisons of this one with others.
    """
    counts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    several = False
    for task in tasks:
        by_annotator = {name: outcomes(ranks) for name, ranks in task.ranks.items()}
        for first, second in combinations(by_annotator, 2):
            if annotator not in (None, first, second):
                continue
            several = True
            same, of = _compare(by_annotator[first], by_annotator[second], ties=ties)
            before = counts[task.prompt]
            counts[task.prompt] = (before[0] + same, before[1] + of)
    return share(
        counts,
        nothing="somebody says tie in every comparison" if several else TOO_FEW,
        at_end="unanimous: no two labels differ",
    )


def _compare(a: Sequence[int], b: Sequence[int], *, ties: bool) -> tuple[int, int]:
    """Return how many outcomes are the same, out of how many."""
    counted = [(x, y) for x, y in zip(a, b, strict=True) if ties or (x and y)]
    return sum(x == y for x, y in counted), len(counted)


def alpha(
    *,
    counts_NV: NDArray[np.int_],
    prompts: Sequence[str],
    level: Literal["nominal", "ordinal"],
) -> Figure:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance would give, below 0 is worse.

    The interval is over prompts with their coincidences.

    Args:
        counts_NV: how many annotators gave unit n the value v; values in order.
        prompts: the prompt of each unit.
        level: "nominal" takes any two values as equally apart, "ordinal" by what lies between.

    Source: Krippendorff (2011), Computing Krippendorff's alpha-reliability.
    """
    keep_N = counts_NV.sum(axis=1) >= 2  # one label agrees with nobody
    counts_NV = counts_NV[keep_N]
    if not len(counts_NV):
        return missing(TOO_FEW)
    if (counts_NV.sum(axis=0) > 0).sum() < 2:
        return missing(
            f"unanimous: one and the same value in all {counted(int(counts_NV.sum()), 'label')}; "
            "alpha compares with chance, and there is no second value to meet by chance"
        )
    n_values = counts_NV.shape[1]
    # Matrices (V, V) of pairs of values that met add up, so that a prompt's units are one.
    by_prompt: dict[str, NDArray[np.float64]] = {}
    for prompt, part in zip(
        np.asarray(prompts)[keep_N], coincidences(counts_NV=counts_NV), strict=True
    ):
        flat = part.reshape(-1)
        before = by_prompt.get(str(prompt))
        by_prompt[str(prompt)] = flat if before is None else before + flat
    estimate = clustered_figure(
        np.array(list(by_prompt.values())),
        statistic=lambda sums: alpha_of(
            coincidences_RVV=sums.reshape(-1, n_values, n_values), level=level
        ),
    )
    if estimate.high is not None:
        estimate = estimate._replace(high=min(1.0, estimate.high))
    if estimate.value == 1:
        return figure(
            estimate._replace(low=None, high=None), note="unanimous: no two labels differ"
        )
    return figure(estimate)


def coincidences(*, counts_NV: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the coincidence matrix of each unit, (N, V, V), which add up to that of all.

    Each ordered pair of different labels of a unit counts 1 / (labels of the unit - 1).
    """
    counts = counts_NV.astype(np.float64)
    diagonal = counts[:, :, None] * np.eye(counts.shape[1])
    pairs = counts[:, :, None] * counts[:, None, :] - diagonal
    return np.asarray(pairs / np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None])


def alpha_of(
    *, coincidences_RVV: NDArray[np.float64], level: Literal["nominal", "ordinal"]
) -> NDArray[np.float64]:
    """Return alpha of each of R coincidence matrices; NaN where only one value occurs.

    1 - (n - 1) sum o_vw d_vw / sum n_v n_w d_vw, with coincidences o, their margins n_v, n in all,
    and d how far two values are apart.

    Source: Krippendorff (2011), Computing Krippendorff's alpha-reliability, section C.
    """
    width = coincidences_RVV.shape[1]
    n_RV = coincidences_RVV.sum(axis=2)
    if level == "nominal":
        apart_RVV = np.broadcast_to(1.0 - np.eye(width), coincidences_RVV.shape)
    else:
        # What lies from v to w, the two themselves counted half; the same both ways.
        below_RV = np.cumsum(n_RV, axis=1) - n_RV / 2
        apart_RVV = (below_RV[:, :, None] - below_RV[:, None, :]) ** 2
    total_R = n_RV.sum(axis=1)
    observed_R = (coincidences_RVV * apart_RVV).sum(axis=(1, 2))
    expected_R = (n_RV[:, :, None] * n_RV[:, None, :] * apart_RVV).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_R = (total_R - 1) * observed_R / expected_R
    return np.where(expected_R > 0, 1.0 - ratio_R, np.nan)


def pair_alpha(*, tasks: Iterable[TaskRanks], seed: int = 0) -> Figure:
    """Nominal alpha of pairs of completions, each turned one way or the other by a hash.

    Were pairs taken as they stand, a lopsided order (chosen answers first, say) would raise the
    agreement that chance is thought to give. Turned at random, "first" and "second" are alike
    often, and only ties keep a rate of their own.

    Args:
        tasks: what was said; a unit is a pair of completions of a task.
        seed: of the turns.
    """
    counts: list[list[int]] = []
    prompts: list[str] = []
    for task in tasks:
        if len(task.ranks) < 2:
            continue
        each = [outcomes(ranks) for ranks in task.ranks.values()]
        for place, unit in enumerate(zip(*each, strict=True)):
            turn = _turn(f"{seed}\n{task.task}\n{place}")
            counts.append([sum(turn * one == value for one in unit) for value in _VALUES])
            prompts.append(task.prompt)
    table = np.array(counts, dtype=np.int_).reshape(-1, len(_VALUES))
    return alpha(counts_NV=table, prompts=prompts, level="nominal")


def _turn(text: str) -> int:
    return 1 if hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] & 1 else -1


def rating_alpha(
    *,
    ratings: Iterable[tuple[str, Sequence[int]]],
    values: Sequence[int],
) -> Figure:
    """Ordinal alpha of ratings.

    Args:
        ratings: of each completion, its prompt and the ratings it was given.
        values: the scale, in order.
    """
    rows = [(prompt, given) for prompt, given in ratings if given]
    if not rows:
        return missing("no ratings were given")
    table = np.array([[list(given).count(value) for value in values] for _, given in rows])
    return alpha(
        counts_NV=table,
        prompts=[prompt for prompt, _ in rows],
        level="ordinal",
    )


def tau_to_others(*, tasks: Iterable[TaskRanks], annotator: str | None = None) -> Figure:
    """Mean Kendall's tau-b of an annotator's ranks to the consensus of the others.

    The consensus is the mean of the others' ranks (ties take the mean of their places). A label
    counts once; it is left out, and told, where it or the consensus ties everything, since tau-b
    is not defined there.

    Args:
        tasks: what was said.
        annotator: whose; None takes everybody against their others.

    Source: Kendall (1945), The treatment of ties in ranking problems.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    undefined = 0
    for task in tasks:
        if len(task.ranks) < 2:
            continue
        places = {name: _places(tuple(ranks)) for name, ranks in task.ranks.items()}
        for name in places if annotator is None else {annotator} & set(places):
            others = [row for other, row in places.items() if other != name]
            consensus = tuple(
                math.fsum(column) / len(others) for column in zip(*others, strict=True)
            )
            tau = _tau(places[name], consensus)
            if tau is None:
                undefined += 1
                continue
            sums[task.prompt][0] += tau
            sums[task.prompt][1] += 1.0
    note = f"{counted(undefined, 'label')} left out, all tied" if undefined else ""
    if not sums:
        return missing(note or TOO_FEW)
    return figure(clustered_ratio(np.array(list(sums.values()))), note=note)


@functools.lru_cache(maxsize=4096)
def _places(ranks: tuple[int, ...]) -> tuple[float, ...]:
    """Return ranks as places, those that tie sharing the mean of theirs."""
    return tuple(
        sum(other < rank for other in ranks) + (ranks.count(rank) + 1) / 2 for rank in ranks
    )


@functools.lru_cache(maxsize=65536)
def _tau(a: tuple[float, ...], b: tuple[float, ...]) -> float | None:
    # Few completions make few different calls, so most come from the cache.
    from scipy.stats import kendalltau

    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(kendalltau(a, b, variant="b").statistic)


def order_share(*, ranks: Sequence[int], known: Sequence[int]) -> tuple[float, int]:
    """Return how much of the known strict order ranks keep, and how many pairs it has.

    A pair in the known order counts 1, a tie one half.
    """
    pairs = [(x, y) for x, y in zip(outcomes(ranks), outcomes(known), strict=True) if y]
    return sum(1.0 if x == y else 0.5 * (x == 0) for x, y in pairs), len(pairs)


def gold_accuracy(*, labels: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Figure:
    """Share of the known order that labels of gold tasks keep, with Wilson's interval.

    Each label counts once, with the share of the pairs it has in the known order (a tie counts
    half), and the interval takes labels as the trials: pairs of one label are no independent
    trials, and to count them would make it too narrow.

    Args:
        labels: ranks given and ranks known.
    """
    shares = []
    for ranks, known in labels:
        right, of = order_share(ranks=ranks, known=known)
        if of:
            shares.append(right / of)
    if not shares:
        return missing("no gold tasks were labelled")
    return figure(wilson(math.fsum(shares), len(shares)), of="gold labels")


def self_consistency(
    *,
    repeats: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> Figure:
    """Share of pairs of which annotators say the same when they meet a task again; ties count.

    Args:
        repeats: prompt, ranks at first, ranks when the task came again.
    """
    counts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for prompt, before, after in repeats:
        same, of = _compare(outcomes(before), outcomes(after), ties=True)
        counts[prompt] = (counts[prompt][0] + same, counts[prompt][1] + of)
    return share(
        counts,
        nothing="no task was given to the same annotator twice",
        at_end="every repeat says the same again",
    )
