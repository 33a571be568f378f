"""95 % intervals: score intervals for shares, Student's for means, the bootstrap for the rest.

A share has Wilson's interval; wins against losses over the same prompts, which may mostly tie,
have Tango's, with an effective number of prompts where outcomes hang together or were adjusted.
Means, and ratios of sums over prompts, have Student's with what their skewness does to it.
Pure functions of numbers. Every bootstrap is seeded, so that a figure counted again
from the same samples is the same figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
_Name = TypeVar("_Name", bound=Hashable)
_MANY = 30
"""Wins, and losses, from which on drawing prompts anew tells how far the two may differ; of a mean,
values other than the commonest."""
_NONE = 1e-12
"""A variance that is none but for rounding."""
_CACHED = 200_000
"""Numbers of a refit that are worked on at a time, so that they stay in a processor's cache."""
_CELLS = 4_000_000
"""Numbers drawn at a time, so that many prompts with many resamples fit the memory."""
_STEP = 1e-5
"""Share of a prompt that is added to see how much it moves a statistic."""


class Estimate(NamedTuple):
    """A figure with its interval; value and ends are None where nothing was counted."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def ci95(self) -> list[float] | None:
        """The interval as JSON holds it."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def wilson(successes: float, n: int, *, level: float = LEVEL) -> Estimate:
    """Return a share and its Wilson score interval (Wilson, 1927).

    Unlike the textbook's normal interval it stays within 0 and 1 and has a width at 0 and 1.

    Args:
        successes: count that fulfils; halves are fine (a tie counted half).
        n: count of all.
        level: confidence.
    """
    if n == 0:
        return Estimate(None, None, None, 0)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not leave the share outside: at 0 and 1 it is an end of the interval.
    low, high = min(share, middle - half), max(share, middle + half)
    return Estimate(share, max(0.0, low), min(1.0, high), n)


def paired_outcomes(
    wins: int, losses: int, n: int, *, resamples: int, seed: int, level: float = LEVEL
) -> Estimate:
    """Return (wins - losses) / n over n prompts, the rest of them ties, with its interval.

    The bootstrap over prompts needs many of both: of 100 prompts that tie but for 3 wins it can
    only draw wins, and its ends miss the truth far more often than one time in twenty. Below 30
    wins or 30 losses Tango's score interval stands instead. To draw prompts anew is to draw the
    three counts from a multinomial distribution, so the counts are all that either needs.
    """
    if min(wins, losses) < _MANY:
        return paired_score(wins, losses, n, level=level)
    counts_R3 = np.random.default_rng(seed).multinomial(
        n, [wins / n, losses / n, (n - wins - losses) / n], size=resamples
    )
    means_R = (counts_R3[:, 0] - counts_R3[:, 1]) / n
    low, high = np.quantile(means_R, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate((wins - losses) / n, float(low), float(high), n)


def paired_score(wins: float, losses: float, n: int, *, level: float = LEVEL) -> Estimate:
    """Return (wins - losses) / n and its score interval for paired outcomes (Tango, 1998).

    It holds the differences d that a test at the level does not refuse, with the share of losses
    that is likeliest under each d as its nuisance (Statistics in Medicine 17:891). Without ties it
    is Wilson's interval, and all ties still leave it a width. A Wilson interval that counts ties
    half covers too, but is as wide as if nothing tied: four times too wide at 95 % ties.

    Args:
        wins: prompts where the first is better.
        losses: prompts where the second is.
        n: all prompts, ties among them.
        level: confidence.
    """
    if n == 0:
        return Estimate(None, None, None, 0)
    low, high = _score_ends(wins, losses, n, z=NormalDist().inv_cdf(0.5 + level / 2))
    return Estimate((wins - losses) / n, low, high, n)


def _score_ends(wins: float, losses: float, n: float, *, z: float) -> tuple[float, float]:
    def refused(d: float) -> bool:
        linear = (2 * n - wins + losses) * d - wins - losses
        root = math.sqrt(max(0.0, linear**2 + 8 * n * losses * d * (1 - d)))
        lost = (root - linear) / (4 * n)
        return (wins - losses - n * d) ** 2 > z * z * n * (2 * lost + d * (1 - d))

    low, high = (_last_kept(refused, (wins - losses) / n, end) for end in (-1.0, 1.0))
    return low, high


def clustered_share(parts_P2: NDArray[np.float64], *, level: float = LEVEL) -> Estimate:
    """Return a share of what prompts have different numbers of, and its interval.

    Wilson's, with the effective number of observations by the variance of the ratio over prompts
    (linearised); where nothing varies, as many as prompts, so that three unanimous prompts do not
    pass for certainty.

    Args:
        parts_P2: of each prompt what fulfils and what was counted, which is more than none.
        level: confidence.
    """
    prompts = len(parts_P2)
    if prompts == 0:
        return Estimate(None, None, None, 0)
    fulfils, n = parts_P2.sum(axis=0)
    share = float(fulfils / n)
    beyond_P = parts_P2[:, 0] - share * parts_P2[:, 1]
    ends = effective_score(
        2 * share - 1,
        decided=1.0,
        variance=4 * float(beyond_P @ beyond_P) / n**2 * prompts / max(1, prompts - 1),
        clusters=prompts,
        most=math.inf,
        least=prompts,
        level=level,
    )
    low, high = ((1 + end) / 2 for end in ends)
    return Estimate(share, min(share, low), max(share, high), prompts)


def clustered_outcomes(
    outcomes: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    trials: int | None = None,
    level: float = LEVEL,
) -> Estimate:
    """Return the mean of outcomes 1, 0 and -1 and its interval, prompts asked more than once.

    The score interval (`effective_score`) with the variance of the mean by clusters. `n` counts
    the outcomes.

    Args:
        outcomes: of each time that a prompt was asked.
        clusters: the prompt of each.
        trials: verdicts that the outcomes are means of; one each when not given.
        level: confidence.
    """
    n = len(outcomes)
    if n == 0:
        return Estimate(None, None, None, 0)
    values, (names, cluster_N) = np.asarray(outcomes, np.float64), number_clusters(clusters)
    value, count = float(values.mean()), len(names)
    totals = np.bincount(cluster_N, weights=values - value)
    low, high = effective_score(
        value,
        decided=float(np.abs(values).mean()),
        variance=float((totals**2).sum()) / n**2 * count / max(1, count - 1),
        clusters=count,
        most=n if trials is None else trials,
        least=count,
        level=level,
    )
    return Estimate(value, low, high, n)


def effective_score(
    value: float,
    *,
    decided: float,
    variance: float,
    clusters: int,
    most: float,
    least: float,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the score interval of a difference of wins and losses whose variance is known.

    Tango's interval with the number of independent prompts that would give this variance, the
    design effect of surveys (Kish, 1965). Where few prompts are decided a bootstrap draws no
    other, and its percentiles miss the truth; this keeps a width there, and with many it is as
    wide. Where a prompt has several outcomes the variance itself is uncertain, so that Student's
    quantile stands for the normal one.

    Args:
        value: wins minus losses, as a share of all.
        decided: share that is won or lost.
        variance: of the value.
        clusters: prompts that were drawn.
        most: the outcomes; they can't tell more than as many independent ones.
        least: independent prompts where nothing varies, and so no variance is seen.
        level: confidence.
    """
    decided, tail = max(decided, abs(value)), 0.5 + level / 2
    n, z = max(1.0, least), NormalDist().inv_cdf(tail)
    if variance > _NONE:
        n = max(1.0, min(most, (decided - value**2) / variance))
        z = float(stdtrit(clusters - 1, tail)) if most > clusters > 1 else z
    return _score_ends(*_sides(value, decided, n), n, z=z)


def number_clusters(clusters: Sequence[_Name]) -> tuple[list[_Name], NDArray[np.int64]]:
    """Return the different clusters in their order, and the place of each item's among them."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    return list(places), np.array([places[name] for name in clusters], dtype=np.int64)


def drawn_clusters(
    count: int, *, resamples: int, seed: int, width: int
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each of `count` clusters is drawn in each resample, (R, count) at a time.

    Args:
        count: clusters, all drawn with equal chances, as many as there are.
        resamples: how often.
        seed: of the draws.
        width: numbers that a resample takes where it is used, which bounds R.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _CACHED // max(width, count))
    for at in range(0, resamples, rows):
        part = min(rows, resamples - at)
        drawn = generator.integers(count, size=(part, count)) + count * np.arange(part)[:, None]
        often = np.bincount(drawn.ravel(), minlength=part * count)
        yield often.reshape(part, count).astype(np.float64)


def _last_kept(refused: Callable[[float], bool], inside: float, end: float) -> float:
    """Return the last value from `inside` on that is not refused, by halving the way to `end`."""
    if not refused(end):
        return end
    for _ in range(60):
        middle = (inside + end) / 2
        inside, end = (inside, middle) if refused(middle) else (middle, end)
    return inside


def mean_or_share(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Return a mean over prompts and its interval: Wilson's where all are 0 or 1, a share.

    The interval of values that all lie within 0 and 1, as scores do, does not leave them.
    """
    if set(values) <= {0.0, 1.0}:
        return wilson(math.fsum(values), len(values), level=level)
    mean = mean_interval(values, level=level)
    if min(values) >= 0 and max(values) <= 1:
        assert mean.low is not None and mean.high is not None
        return mean._replace(low=max(0.0, mean.low), high=min(1.0, mean.high))
    return mean


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Return a mean and its interval by Student's t without its skewness (Hall, 1992).

    Where fewer than 30 values, and less than three quarters, differ from the commonest one, as
    where most prompts tie, they tell little of the rest: Tango's score interval stands instead, of
    three outcomes, the commonest value and the furthest one on both sides, with these values' mean
    and variance.

    Args:
        values: one number a prompt.
        level: confidence.
    """
    numbers = np.asarray(values, dtype=np.float64)
    count = len(numbers)
    if count == 0:
        return Estimate(None, None, None, 0)
    mean = float(numbers.mean())
    kinds, often = np.unique(numbers, return_counts=True)
    away = numbers - kinds[often.argmax()]
    if 0 < (away != 0).sum() < min(_MANY, 3 * count / 4):
        scale = float(np.abs(away).max())
        value, decided = float(away.mean()) / scale, float((away**2).mean()) / scale**2
        z = NormalDist().inv_cdf(0.5 + level / 2)
        ends = _score_ends(*_sides(value, max(decided, abs(value)), count), count, z=z)
        low, high = (mean + scale * (end - value) for end in ends)
        return Estimate(mean, low, high, count)
    return Estimate(mean, *_skewed_ends(mean, numbers - mean, level), count)


def over_seeds(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Return a mean over few runs that differ by their seed, and its interval (Student's t).

    As everybody reports it: of five values no skewness can be told. Without ends of one run.
    """
    count, numbers = len(values), np.asarray(values, dtype=np.float64)
    if count == 0:
        return Estimate(None, None, None, 0)
    mean = float(numbers.mean())
    if count == 1:
        return Estimate(mean, None, None, 1)
    half = students_quantile(count, level=level) * float(numbers.std()) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def clustered_ratio(parts_P2: NDArray[np.float64], *, level: float = LEVEL) -> Estimate:
    """Return the sum of one count over the sum of another, and its interval over prompts.

    What is said of one prompt hangs together, so that prompts are what varies: how far each is from
    the ratio of all (linearised) has the interval of a mean (`mean_interval`), which does not go
    beyond what single prompts have.

    Args:
        parts_P2: two counts of each prompt.
        level: confidence.

    Returns:
        The ratio; without ends where there are fewer than two prompts. `n` counts the prompts.
    """
    prompts = len(parts_P2)
    tops_P, sizes_P = parts_P2.T if prompts else np.zeros((2, 0))
    if not sizes_P.sum():
        return Estimate(None, None, None, prompts)
    value = float(tops_P.sum() / sizes_P.sum())
    if prompts < 2:
        return Estimate(value, None, None, prompts)
    ends = _skewed_ends(value, (tops_P - value * sizes_P) / sizes_P.mean(), level)
    own = tops_P[sizes_P > 0] / sizes_P[sizes_P > 0]
    low, high = np.clip(ends, min(value, own.min()), max(value, own.max()))
    return Estimate(value, float(low), float(high), prompts)


def clustered_figure(
    parts_PM: NDArray[np.float64],
    *,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    level: float = LEVEL,
) -> Estimate:
    """Return a smooth statistic of summed counts and its interval over prompts.

    As `clustered_ratio`: how much a little more of a prompt moves the statistic (the infinitesimal
    jackknife, Efron 1982) has the interval of a mean.

    Args:
        parts_PM: M counts of each of P prompts, which add up.
        statistic: turns sums (R, M) into figures (R,).
        level: confidence.

    Returns:
        The figure of all prompts; without ends where there are fewer than two. `n` counts them.
    """
    count, total_M = len(parts_PM), parts_PM.sum(axis=0)
    value = float(statistic(total_M[None])[0])
    if count < 2:
        return Estimate(value, None, None, count)
    moved_P = (statistic(total_M + _STEP * parts_PM) - value) / _STEP
    return Estimate(value, *_skewed_ends(value, count * (moved_P - moved_P.mean()), level), count)


def _skewed_ends(value: float, beyond_P: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Return the ends around a value, given how far each prompt lies beyond it, 0 on average.

    Where values are skewed, as lengths are, so is Student's t, and more on the side of the tail.
    Hall's cubic takes that out and has an inverse in closed form (Annals of Statistics 20:716,
    section 2); the normal quantile is Student's here, and no end is more than twice as far away as
    without.
    """
    count = len(beyond_P)
    variance = float(beyond_P @ beyond_P) / count
    if count < 2 or variance == 0:
        return value, value
    most, root = float(stdtrit(count - 1, 0.5 + level / 2)), math.sqrt(count)
    skewness = float((beyond_P**3).mean()) / variance**1.5
    skewness = math.copysign(min(abs(skewness), root / most), skewness)

    def end(t: float) -> float:
        if abs(skewness) > 1e-6:
            cube = 1 + skewness * (t / root - skewness / (6 * count))
            t = 3 * root / skewness * (max(0.0, cube) ** (1 / 3) - 1)
        return value - max(-2 * most, min(t, 2 * most)) * math.sqrt(variance / (count - 1))

    return end(most), end(-most)


def _sides(value: float, decided: float, n: float) -> tuple[float, float]:
    """Return how many wins and losses of n have this difference and this share, fractions too."""
    return n * (decided + value) / 2, n * (decided - value) / 2


def students_quantile(count: int, *, level: float = LEVEL) -> float:
    """Return how many deviations of a sum over prompts, those of `count - 1` out of `count`, reach.

    Student's quantile times sqrt(n / (n - 1)), since the variance that n values have about their
    own mean is by so much too small; `count` is two at least.
    """
    return float(stdtrit(count - 1, 0.5 + level / 2)) * math.sqrt(count / (count - 1))


def _percentiles(figures_R: NDArray[np.float64], count: int, level: float) -> tuple[float, float]:
    """Return the ends between which resampled figures lie, expanded for few prompts.

    Of `count` prompts the percentiles alone are as narrow as a normal interval with the biased
    variance; so much further out they are as wide as Student's (Hesterberg, 2015, section 4.4).
    """
    tail = NormalDist().cdf(-students_quantile(count, level=level))
    low, high = np.quantile(figures_R, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, resamples: int, seed: int, level: float = LEVEL
) -> Estimate:
    """Return the mean of a - b over the same prompts, and its interval.

    Of marks, all 0 or 1, only the prompts where they differ count (`paired_outcomes`); of other
    values it is the interval of their mean.

    Raises:
        ValueError: the two have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values don't come in pairs")
    if {*a, *b} <= {0.0, 1.0}:
        wins, losses = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
        return paired_outcomes(wins, losses, len(a), resamples=resamples, seed=seed, level=level)
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return mean_interval(differences.tolist(), level=level)


def bootstrap_clusters(
    parts_PM: NDArray[np.float64],
    *,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Estimate:
    """Return a statistic of summed counts and its bootstrap interval over prompts.

    Whole prompts are drawn, with all that was counted of each: what is said of one prompt hangs
    together, and drawing its pieces singly would make the interval too narrow (Field and Welsh,
    2007). Prompts with equal counts are drawn as one kind, which changes nothing but the time.

    Args:
        parts_PM: M counts of each of P prompts, which add up.
        statistic: turns sums (R, M) into figures (R,), NaN where one is not defined.
        resamples: how often the prompts are drawn anew.
        seed: of the draws.
        level: confidence.

    Returns:
        The figure of all prompts; without ends where there are fewer than two prompts or the
        figure is not defined for most draws. `n` counts the prompts.
    """
    count = len(parts_PM)
    if count == 0:
        return Estimate(None, None, None, 0)
    value = float(statistic(parts_PM.sum(axis=0, keepdims=True))[0])
    if math.isnan(value):
        return Estimate(None, None, None, count)
    if count < 2:
        return Estimate(value, None, None, count)
    # P prompts drawn with replacement are a multinomial over the U different rows of counts.
    kinds_UM, often_U = np.unique(parts_PM, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS // len(kinds_UM))  # resamples at a time, so that memory is bounded
    figures = np.concatenate(
        [
            statistic(
                generator.multinomial(count, often_U / count, size=min(rows, resamples - at))
                @ kinds_UM
            )
            for at in range(0, resamples, rows)
        ]
    )
    defined = figures[~np.isnan(figures)]
    if 2 * len(defined) < resamples:
        return Estimate(value, None, None, count)
    return Estimate(value, *_percentiles(defined, count, level), count)
