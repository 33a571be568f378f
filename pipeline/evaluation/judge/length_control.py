"""The win rate that answers of equal length would have.

Where the judge likes long answers, a policy that only writes longer wins. As in the minimal form of
length-controlled AlpacaEval (Dubois et al., 2024, equation 2) the probability to win is

    logit P(win) = theta + phi tanh(dlen / sigma),

dlen being the difference in length, sigma its standard deviation over all pairs, and the rate is
told at dlen = 0, which leaves sigmoid(theta). It departs from AlpacaEval in that ties count half,
the instruction's own term is left out, which small sets can't tell, and the interval contains the
fit: it is made again on each resample of prompts.

Length is counted in characters: the judge reads the text, and checkpoints of different tokenizers
compare.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit

from data.intervals import LEVEL, Estimate, drawn_clusters, effective_score, number_clusters
from pipeline.evaluation.judge.logistic import Floats, fit_logistic

LEAST_PAIRS = 5
"""Pairs of equal length that would tell as much as those there are; with fewer there is no rate."""


def length_controlled(
    outcomes: Sequence[float],
    length_differences: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    trials: int | None = None,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Estimate:
    """Return the win rate at equal length, ties half, with its interval over prompts.

    Its variance is that of the refits; the interval around it is `data.intervals.effective_score`,
    which covers where most pairs tie, too.

    Args:
        outcomes: 1 for a win, half for a tie, 0 for a loss, or the mean of several verdicts.
        length_differences: length of the one minus that of the other answer.
        clusters: the prompt of each pair.
        trials: verdicts that the outcomes are means of; one each when not given.
        resamples: how often the prompts are drawn anew.
        seed: of the draws.
        level: confidence.

    Returns:
        The estimate, `n` the pairs; without value where the pairs can't tell what equal lengths
        would give: there are few, or almost all differ the same way.
    """
    won_N = np.asarray(outcomes, dtype=np.float64)
    length_N = np.asarray(length_differences, dtype=np.float64)
    n, spread = len(won_N), float(length_N.std()) if len(length_N) else 0.0
    features_N2 = np.stack([np.ones(n), np.tanh(length_N / (spread or 1.0))], axis=1)
    names, cluster_N = number_clusters(clusters)
    worth = _worth(features_N2)
    if worth < LEAST_PAIRS or len(names) < 2:
        return Estimate(None, None, None, n)
    full_2 = fit_logistic(features_N2, won_N[None], np.ones((1, n)))[0]
    rate = float(expit(full_2[0]))
    rates_R = np.concatenate(
        [
            expit(fit_logistic(features_N2, drawn * won_N, drawn, start_F=full_2)[:, 0])
            for often_RC in drawn_clusters(len(names), resamples=resamples, seed=seed, width=n)
            for drawn in [often_RC[:, cluster_N]]
        ]
    )
    count = len(names)
    same = bool((won_N == won_N[0]).all())
    low, high = effective_score(
        2 * rate - 1,
        decided=float((won_N != 0.5).mean()),
        variance=0.0 if same else 4 * float(rates_R.var()) * count / (count - 1),
        clusters=count,
        most=n if trials is None else trials,
        least=worth * count / n,
        level=level,
    )
    return Estimate(rate, (1 + low) / 2, (1 + high) / 2, n)


def _worth(features_N2: Floats) -> float:
    """Return how many pairs without a length difference would tell the intercept as well."""
    (count, mixed), (_, squared) = features_N2.T @ features_N2
    return float(count - mixed**2 / squared) if squared else float(count)
