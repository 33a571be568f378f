"""Coverage of every 95 % interval, by simulation: how often it holds the truth.

    python tests/benchmarks/interval_coverage.py [--trials 1000] [--n 30,100,300,1000] [--only NAME]

Each trial draws prompts whose outcomes hang together (a Gaussian copula: the correlation of the
latent outcomes of a prompt is .5), with a truth of its own, and counts whether the interval holds
it; the standard error of a share of 1,000 trials is .007. `n` counts prompts. Where a prompt has
several outcomes it has 1 to 5, 3 on average.

Of 30 prompts with 95 % ties one or two are decided, and no sensible interval then refuses "no
difference": every interval that knows this holds the truth nearly always. Such cells are marked.

Of few-shot tasks (`examples`) n counts questions, and in the place of ties stands how much the
drawn examples matter: the standard deviation of their effect, in log-odds. For Krippendorff's alpha
and the F1 of classes it is the share of the commonest of three, a third at least; for the area of
risk the share of answers that are right for sure; for the calibration error and the temperature the
logarithm of the true temperature: at 0 the probabilities are calibrated.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from data.intervals import (
    Estimate,
    bootstrap_clusters,
    clustered_outcomes,
    clustered_ratio,
    clustered_share,
    mean_interval,
    paired_outcomes,
    paired_score,
    wilson,
)
from data.labels.agreement.agreement import alpha
from data.records import Labelled
from pipeline.evaluation.benchmarks.figures import mean_over_draws
from pipeline.evaluation.judge.length_control import length_controlled
from pipeline.evaluation.judge.ratings import Comparison, bradley_terry
from pipeline.evaluation.judge.truthfulness import risk_area
from pipeline.evaluation.judge.winrates import win_rate
from pipeline.stages.finetune.figures import counts, f1_of
from reward.quality.pairs import ScoredPair
from reward.quality.probabilities import calibration
from reward.quality.shares import clustered_interval

TIES = (0.0, 0.5, 0.95)
DRAW = {"resamples": 300, "seed": 0}
CORRELATION = 0.5
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
"""Of a normal variable, to take means over."""
Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class Trial(NamedTuple):
    """An interval and the truth that it should hold."""

    found: Estimate
    truth: float

    @property
    def holds(self) -> bool:
        assert self.found.low is not None and self.found.high is not None
        return self.found.low - 1e-9 <= self.truth <= self.found.high + 1e-9


Method = Callable[[np.random.Generator, int, float], Trial]


def prompts_of(rng: np.random.Generator, n: int, most: int) -> Places:
    """Return the prompt of each pair: each of n has 1 to `most`."""
    return np.repeat(np.arange(n), rng.integers(1, most + 1, size=n))


def together(rng: np.random.Generator, prompt_N: Places) -> Floats:
    """Return uniform numbers that hang together within a prompt."""
    shared = rng.normal(size=prompt_N.max() + 1)[prompt_N]
    own = rng.normal(size=len(prompt_N))
    uniform: Floats = ndtr(math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * own)
    return uniform


def outcomes(uniform_N: Floats, rate: Floats | float, ties: float) -> Floats:
    """Return 1, half and 0, of mean `rate`, ties among them."""
    won, lost = rate - ties / 2, 1 - rate - ties / 2
    return np.where(uniform_N > 1 - won, 1.0, np.where(uniform_N < lost, 0.0, 0.5))


def true_odds(rng: np.random.Generator, ties: float, share: float) -> float:
    """Return log-odds drawn evenly from the given share of what so many ties leave room for."""
    room = min(1.6, logit(1 - ties / 2)) if ties else 1.6
    return float(rng.uniform(-share, share) * room)


def a_share(rng: np.random.Generator, n: int, ties: float) -> Trial:
    truth = (
        float(rng.uniform(0.02, 0.98)) if not ties else float(rng.uniform(0.5, 1.5) * (1 - ties))
    )
    return Trial(wilson(int((rng.random(n) < truth).sum()), n), truth)


def pairs_once(rng: np.random.Generator, n: int, ties: float, score: bool = False) -> Trial:
    rate = float(expit(true_odds(rng, ties, 0.95)))
    won = outcomes(rng.random(n), rate, ties)
    counts = int((won == 1).sum()), int((won == 0).sum()), n
    found = paired_score(*counts) if score else paired_outcomes(*counts, **DRAW)
    return Trial(found, 2 * rate - 1)


def pairs_clustered(rng: np.random.Generator, n: int, ties: float) -> Trial:
    rate = float(expit(true_odds(rng, ties, 0.95)))
    prompt_N = prompts_of(rng, n, 5)
    won = outcomes(together(rng, prompt_N), rate, ties)
    return Trial(clustered_outcomes((2 * won - 1).tolist(), prompt_N.tolist()), 2 * rate - 1)


def several_labels(rng: np.random.Generator, n: int, ties: float, length: bool = False) -> Trial:
    """One to three people compare each two answers; their mean is the outcome."""
    theta = true_odds(rng, ties, 0.6)
    phi = true_odds(rng, ties, 0.35) if length else 0.0
    prompt_N = prompts_of(rng, n, 3)
    longer = np.round(60 * rng.normal(size=n))
    rate = expit(theta + phi * np.tanh(longer / longer.std()))[prompt_N]
    won = outcomes(together(rng, prompt_N), rate, ties)
    means = (np.bincount(prompt_N, weights=won) / np.bincount(prompt_N)).tolist()
    truth, counted = float(expit(theta)), {"trials": len(prompt_N), **DRAW}
    if length:
        return Trial(length_controlled(means, longer.tolist(), range(n), **counted), truth)
    return Trial(win_rate(means, prompts=range(n), **counted).rate, truth)


def equal_length(rng: np.random.Generator, n: int, ties: float, most: int, longer: float) -> Trial:
    """One side is `longer` standard deviations longer on average."""
    prompt_N = prompts_of(rng, n, most)
    size = len(prompt_N)
    length = longer + 0.7 * rng.normal(size=n)[prompt_N] + 0.7 * rng.normal(size=size)
    length = np.round(60 * length)
    theta, phi = true_odds(rng, ties, 0.6), true_odds(rng, ties, 0.35)
    rate = expit(theta + phi * np.tanh(length / length.std()))
    won = outcomes(together(rng, prompt_N), rate, ties)
    found = length_controlled(won.tolist(), length.tolist(), prompt_N.tolist(), **DRAW)
    return Trial(found, float(expit(theta)))


def rating(rng: np.random.Generator, n: int, ties: float, checkpoints: int) -> Trial:
    """The last of some checkpoints over the first."""
    names = [str(place) for place in range(checkpoints)]
    ratings = [0.0] + [true_odds(rng, ties, 0.48) for _ in names[1:]]
    pairs = [(a, b) for a in range(checkpoints) for b in range(a)]
    prompt_N = np.repeat(np.arange(n), len(pairs))
    uniform = together(rng, prompt_N).reshape(n, len(pairs))
    comparisons = [
        Comparison(names[a], names[b], float(outcome), prompt)
        for pair, (a, b) in enumerate(pairs)
        for rate in [float(expit(ratings[a] - ratings[b]))]
        for prompt, outcome in enumerate(outcomes(uniform[:, pair], rate, ties))
    ]
    return Trial(bradley_terry(names, comparisons, **DRAW)[names[-1]], ratings[-1])


def a_mean(rng: np.random.Generator, n: int, ties: float, skewed: bool = False) -> Trial:
    """A mean of differences, of which so many are exactly 0."""
    truth = float(rng.uniform(-0.5, 0.5))
    values = rng.exponential(size=n) - 1 if skewed else rng.normal(size=n)
    values = np.where(rng.random(n) < ties, 0.0, values + truth)
    return Trial(mean_interval(values.tolist()), truth * (1 - ties))


def a_ratio(rng: np.random.Generator, n: int, ties: float) -> Trial:
    """A share of what prompts have different numbers of, as in the agreement of annotators."""
    rate = float(expit(true_odds(rng, ties, 0.95)))
    prompt_N = prompts_of(rng, n, 5)
    won = outcomes(together(rng, prompt_N), rate, ties)
    counts = np.bincount(prompt_N).astype(np.float64)
    parts = np.stack([np.bincount(prompt_N, weights=won), counts], axis=1)
    return Trial(clustered_ratio(parts), rate)


def share_of_counts(rng: np.random.Generator, n: int, ties: float) -> Trial:
    """A share of marks that are true for all but few, as the agreement of annotators."""
    rate = float(rng.uniform(0.5, 0.97) if not ties else 1 - rng.uniform(0.5, 1.5) * (1 - ties))
    prompt_N = prompts_of(rng, n, 5)
    counts = np.bincount(prompt_N).astype(np.float64)
    fulfils = np.bincount(prompt_N, weights=together(rng, prompt_N) < rate)
    return Trial(clustered_share(np.stack([fulfils, counts], axis=1)), rate)


def an_accuracy(rng: np.random.Generator, n: int, ties: float) -> Trial:
    """Shares of 1, half and 0 within prompts, as the accuracy of a reward model."""
    rate = float(expit(true_odds(rng, ties, 0.95)))
    prompt_N = prompts_of(rng, n, 5)
    won = outcomes(together(rng, prompt_N), rate, ties)
    found = clustered_interval(won.tolist(), [str(p) for p in prompt_N])
    return Trial(Estimate(found.mean, found.low, found.high, found.n), rate)


def behind_examples(rng: np.random.Generator, n: int, ties: float, draws: int) -> Trial:
    """An accuracy behind a few draws of examples, whose effect deviates by `ties`."""
    truth = float(WEIGHTS @ expit(1 + math.hypot(1.5, ties) * NODES) / WEIGHTS.sum())
    chance_DQ = expit(1 + rng.normal(0, 1.5, size=n) + rng.normal(0, ties, size=(draws, 1)))
    marks_DQ = (rng.random((draws, n)) < chance_DQ).astype(np.float64)
    return Trial(mean_over_draws(marks_DQ, **DRAW), truth)


def an_alpha(rng: np.random.Generator, n: int, ties: float) -> Trial:
    """Krippendorff's alpha of three values, the commonest of which takes a share of `ties`.

    A unit's labels are drawn from chances of its own, half of the time those of its prompt, from a
    Dirichlet distribution: two labels of a unit then agree beyond chance by 1 / (1 + its total).
    """
    truth = float(rng.uniform(0.1, 0.85))
    commonest = max(ties, 1 / 3)
    shares = np.array([commonest, (1 - commonest) / 2, (1 - commonest) / 2]) * (1 / truth - 1)
    prompt_N = prompts_of(rng, n, 5)
    of_prompt_N = rng.dirichlet(shares, size=n)[prompt_N]
    of_unit_N = rng.dirichlet(shares, size=len(prompt_N))
    chances_NV = np.where(rng.random((len(prompt_N), 1)) < 0.5, of_prompt_N, of_unit_N)
    counts_NV = rng.multinomial(rng.integers(2, 4, size=len(prompt_N)), chances_NV)
    found = alpha(counts_NV=counts_NV, prompts=[str(p) for p in prompt_N], level="nominal")
    value = math.nan if found.value is None else found.value
    return Trial(Estimate(value, found.low, found.high, found.n), truth)


def an_f1(rng: np.random.Generator, n: int, ties: float) -> Trial:
    """The F1 of three classes, the commonest of which takes a share of `ties`."""
    commonest, right = max(ties, 1 / 3), float(rng.uniform(0.6, 0.95))
    shares = np.array([commonest, (1 - commonest) / 2, (1 - commonest) / 2])
    told = shares * right + (1 - shares) * (1 - right) / 2
    truth = float((2 * shares * right / (shares + told)).mean())
    gold_N, wrong_N = rng.choice(3, size=n, p=shares), rng.integers(1, 3, size=n)
    told_N = (gold_N + np.where(rng.random(n) < right, 0, wrong_N)) % 3
    names = ("a", "b", "c")
    rows = [Labelled("", names[place]) for place in gold_N]
    says = [{"label": names[place]} for place in told_N]
    return Trial(
        bootstrap_clusters(counts(rows, says, names), statistic=f1_of(rows), **DRAW), truth
    )


def an_area(rng: np.random.Generator, n: int, ties: float) -> Trial:
    """The mean risk over all thresholds; of the surest answers a fourth as many are wrong."""
    least = 0.2 * (1 - ties) * float(rng.uniform(0.5, 1.2))
    wrong_N = rng.random(n) < least * (1 + 3 * np.sort(rng.random(n)))
    return Trial(risk_area(wrong_N.astype(np.float64)), least * (1 + 3 / 4))


def calibrated(rng: np.random.Generator, n: int, ties: float, figure: str) -> Trial:
    """Scores of a reward model that is right as often as its differences say at a temperature.

    The differences of a prompt hang together; in all they are normal, of variance 1.5 ** 2.
    """
    truth = math.exp(ties)
    prompt_N = prompts_of(rng, n, 5)
    difference_N = 1.5 * np.asarray(ndtri(together(rng, prompt_N)))
    right_N = together(rng, prompt_N) < expit(difference_N / truth)
    signed_N = np.where(right_N, difference_N, -difference_N)
    pairs = [
        ScoredPair(str(prompt), float(signed), 0.0, 1, 1)
        for prompt, signed in zip(prompt_N, signed_N, strict=True)
    ]
    found = calibration(pairs, **DRAW)
    if figure == "temperature":
        temperature = found["temperature"] or {"value": None, "ci95": None}
        return Trial(_estimate(temperature["value"], temperature["ci95"], n), truth)
    return Trial(_estimate(found["ece"], found["ci95_ece"], n), _true_error(truth))


def _estimate(value: float | None, ci95: list[float] | None, n: int) -> Estimate:
    low, high = ci95 or (None, None)
    return Estimate(value, low, high, n)


@cache
def _true_error(temperature: float, bins: int = 5) -> float:
    """Return the calibration error of endlessly many pairs, the differences of deviation 1.5."""
    size_G = 1.5 * np.abs(ndtri((np.arange(10**6) + 0.5) / 10**6))
    promised_G, kept_G = expit(size_G), expit(size_G / temperature)
    bin_G = np.minimum(bins - 1, (promised_G - 0.5) * 2 * bins).astype(np.int64)
    gaps = np.bincount(bin_G, weights=promised_G - kept_G)
    return float(np.abs(gaps).sum() / len(size_G))


METHODS: dict[str, Method] = {
    "wilson": a_share,
    "paired_score": partial(pairs_once, score=True),
    "paired_outcomes": pairs_once,
    "clustered_outcomes": pairs_clustered,
    "win_rate, 1 to 3 labels": several_labels,
    "mean_interval": a_mean,
    "mean_interval, skewed": partial(a_mean, skewed=True),
    "clustered_ratio": a_ratio,
    "clustered_share": share_of_counts,
    "clustered_interval": an_accuracy,
    "alpha": an_alpha,
    "F1 of classes": an_f1,
    "area of risk": an_area,
    "calibration error": partial(calibrated, figure="error"),
    "temperature": partial(calibrated, figure="temperature"),
    "length, 1 a prompt": partial(equal_length, most=1, longer=0.0),
    "length, 1, one side longer": partial(equal_length, most=1, longer=0.8),
    "length, 1 to 5": partial(equal_length, most=5, longer=0.0),
    "length, 1 to 5, one longer": partial(equal_length, most=5, longer=0.8),
    "length, 1 to 3 labels": partial(several_labels, length=True),
    "Bradley-Terry of 2": partial(rating, checkpoints=2),
    "Bradley-Terry of 4": partial(rating, checkpoints=4),
    "examples, 2 draws": partial(behind_examples, draws=2),
    "examples, 3 draws": partial(behind_examples, draws=3),
    "examples, 5 draws": partial(behind_examples, draws=5),
}


def coverage(
    name: str, *, n: int, ties: float, trials: int, resamples: int = 300
) -> tuple[float, float]:
    """Return the share of trials whose interval holds the truth, and the median width."""
    DRAW["resamples"] = resamples
    rng = np.random.default_rng([zlib.crc32(name.encode()), n, round(100 * ties)])
    done = [METHODS[name](rng, n, ties) for _ in range(trials)]
    told = [trial for trial in done if trial.found.low is not None]
    ends = [trial.found.ci95 or [math.nan] * 2 for trial in told]
    widths = [high - low for low, high in ends]
    return sum(trial.holds for trial in told) / len(told), float(np.median(widths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--n", default="30,100,300,1000")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    sizes = [int(n) for n in options.n.split(",")]
    print("| interval | ties |" + "".join(f" n = {n} |" for n in sizes))
    print("|---|---|" + "---|" * len(sizes))
    for name in METHODS:
        if options.only not in name:
            continue
        for ties in TIES:
            row = []
            for n in sizes:
                held, width = coverage(name, n=n, ties=ties, trials=options.trials)
                mark = "*" if n * (1 - ties) < 5 else ""
                row.append(f" {held:.3f}{mark} ({width:.3f}) |".replace("0.", "."))
            print(f"| {name} | {ties:.0%} |" + "".join(row), flush=True)


if __name__ == "__main__":
    main()
