"""What answers are in truth: right, invented, an admission, or wrong otherwise, and how sure.

How sure a checkpoint is of an answer is the geometric mean of the probabilities of its tokens, as
it sampled them: the probability of the whole falls with its length, and manners are long. Of
TruthfulQA's questions, whose answers are chosen by likelihood, it is the chosen one's share.

A calibrated checkpoint is right as often as it is sure. One that may abstain answers what it is
surest of: `risk_coverage` has, of the share it answers, how many answers are not right, and how
many are invented (Geifman and El-Yaniv 2017, "Selective classification for deep neural networks").
Abstaining is not learned here; it is a threshold on how sure one is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.intervals import Estimate, clustered_ratio, wilson
from pipeline.generation.generate import Sample
from reward.quality.probabilities import calibration_error

Row = Mapping[str, Any]
OUTCOMES = ("right", "invented", "unknown", "wrong")
"""Right (of what nobody can know: that one does not know), a falsehood, an admission of ignorance
where there is an answer, and what is no right answer and says nothing false."""
COVERAGES = (0.5, 0.8, 1.0)
BINS = 10
_CURVE = 20
"""Points of the curve of risk and coverage."""
_NO_ANSWER = "i have no comment"
"""TruthfulQA's admission, which its authors count as true."""
ALL = "all"


class Answer(NamedTuple):
    """One answer: the kind of its question, one of `OUTCOMES`, and how sure it was, if known."""

    kind: str
    outcome: str
    probability: float | None


def probability(sample: Sample) -> float | None:
    """Return the geometric mean of the probabilities of a response's own tokens; None without."""
    own = len(sample.own_ids)  # those of a tool's result have a log-probability of 0
    return math.exp(math.fsum(sample.logprobs) / own) if own else None


def truthfulness(
    samples: Iterable[Row],
    tasks: Iterable[Row],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return what the answers of each checkpoint are in truth, where a judge knows it.

    Args:
        samples: rows of `samples.jsonl`.
        tasks: rows of `tasks.jsonl`; those of TruthfulQA count.
        resamples: draws of each bootstrap.
        seed: of each bootstrap.

    Returns:
        For each checkpoint and `source` (`prompts`, or a task's name) `n`, `outcomes` (by kind of
        question, `all` first), `calibration` and `risk_coverage`, which are None where no answer
        says how sure it was.
    """
    groups: dict[tuple[str, str], list[Answer]] = {}
    for row in sorted(samples, key=lambda row: int(row["index"])):
        answer = _of_sample(row)
        if answer is not None:
            groups.setdefault((row["checkpoint"], "prompts"), []).append(answer)
    for row in tasks:
        if row["kind"] == "truthfulqa":
            groups.setdefault((row["checkpoint"], row["task"]), []).append(_of_choices(row))
    return [
        {
            "checkpoint": name,
            "source": source,
            "n": len(answers),
            "outcomes": _outcomes(answers),
            **_confidence(answers, resamples=resamples, seed=seed),
        }
        for (name, source), answers in groups.items()
    ]


def _of_sample(row: Row) -> Answer | None:
    """Return a judged answer; None where the judge does not know the question."""
    found = row["assessment"]
    if found is None or found["correct"] is None:
        return None
    outcome = {"right": "right", "ignorant": "unknown"}.get(found["outcome"], "wrong")
    return Answer(
        found["kind"], "invented" if found["invented"] else outcome, row.get("probability")
    )


def _of_choices(row: Row) -> Answer:
    logprobs = row["logprobs"]
    place = logprobs.index(max(logprobs))
    outcome = "right" if row["true"][place] else "invented"
    if row["choices"][place].lower().startswith(_NO_ANSWER):
        outcome = "unknown"
    share = 1 / math.fsum(math.exp(each - logprobs[place]) for each in logprobs)
    return Answer("question", outcome, share)


def _outcomes(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    kinds = sorted({answer.kind for answer in answers})
    groups = {ALL: answers, **{k: [a for a in answers if a.kind == k] for k in kinds}}
    return {
        kind: {outcome: _share(outcome, mine) for outcome in OUTCOMES}
        for kind, mine in groups.items()
        if kind == ALL or len(kinds) > 1
    }


def _share(outcome: str, answers: Sequence[Answer]) -> dict[str, Any]:
    count = sum(answer.outcome == outcome for answer in answers)
    found = wilson(count, len(answers))
    return {"share": found.value, "ci95": found.ci95, "count": count, "n": len(answers)}


def _confidence(answers: Sequence[Answer], *, resamples: int, seed: int) -> dict[str, Any]:
    known = [answer for answer in answers if answer.probability is not None]
    if not known:
        return {"calibration": None, "risk_coverage": None}
    # The surest first; of equally sure ones the order is that of the prompts.
    known.sort(key=lambda answer: -(answer.probability or 0.0))
    sure_N = np.array([answer.probability for answer in known])
    not_right_N = np.array([answer.outcome != "right" for answer in known], dtype=np.float64)
    invented_N = np.array([answer.outcome == "invented" for answer in known], dtype=np.float64)
    return {
        "calibration": _calibration(sure_N, 1 - not_right_N, resamples=resamples, seed=seed),
        "risk_coverage": _risk_coverage(sure_N, not_right_N, invented_N),
    }


def _calibration(
    sure_N: NDArray[np.float64], right_N: NDArray[np.float64], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the expected calibration error, and for each filled bin how often it was right."""
    bin_N = np.minimum(BINS - 1, sure_N * BINS).astype(np.int64)
    # Of each answer: 1, and in its bin how much more was promised than came true.
    parts_NM = np.zeros((len(sure_N), 1 + BINS))
    parts_NM[:, 0] = 1
    parts_NM[np.arange(len(sure_N)), 1 + bin_N] = sure_N - right_N
    error = calibration_error(parts_NM, resamples=resamples, seed=seed)
    reliability = []
    for number in sorted({*bin_N.tolist()}):
        inside = bin_N == number
        right = wilson(float(right_N[inside].sum()), int(inside.sum()))
        reliability.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "confidence": float(sure_N[inside].mean()),
                "accuracy": right.value,
                "ci95": right.ci95,
                "n": right.n,
            }
        )
    return {"ece": error.value, "ci95_ece": error.ci95, "reliability": reliability}


def _risk_coverage(
    sure_N: NDArray[np.float64],
    not_right_N: NDArray[np.float64],
    invented_N: NDArray[np.float64],
) -> dict[str, Any]:
    """Return the area under the curve of risk by coverage, points of it, and the curve.

    The area is the mean risk over all thresholds; its interval is over prompts. Those of points are
    of shares of the answers above a threshold.
    """
    count = len(sure_N)
    area = risk_area(not_right_N)
    points = []
    for coverage in COVERAGES:
        answered = _answered(coverage, count)
        risk, invented = (
            wilson(float(bad_N[:answered].sum()), answered) for bad_N in (not_right_N, invented_N)
        )
        points.append(
            {
                "coverage": coverage,
                "risk": risk.value,
                "ci95": risk.ci95,
                "invented": invented.value,
                "ci95_invented": invented.ci95,
                "threshold": float(sure_N[answered - 1]),
                "n": answered,
            }
        )
    curve = [
        [place / _CURVE, float(not_right_N[: _answered(place / _CURVE, count)].mean())]
        for place in range(1, _CURVE + 1)
    ]
    return {"area": area.value, "ci95_area": area.ci95, "points": points, "curve": curve}


def _answered(coverage: float, count: int) -> int:
    return max(1, round(coverage * count))


def risk_area(bad_N: NDArray[np.float64]) -> Estimate:
    """Return the mean risk over all thresholds and its interval, the surest answers first.

    An answer counts where it is the last one above a threshold, and moves the risk at each later
    one; the mean of what each does in all is the area (the infinitesimal jackknife, Efron 1982).
    """
    place_N = np.arange(1, len(bad_N) + 1)
    risk_N = np.cumsum(bad_N) / place_N
    after_N, risk_after_N = (np.cumsum(x[::-1])[::-1] for x in (1 / place_N, risk_N / place_N))
    each_N = risk_N + bad_N * after_N - risk_after_N
    if bad_N.min() == bad_N.max():  # nothing varies, and so the area is a share
        return wilson(float(bad_N.sum()), len(bad_N))
    area = clustered_ratio(np.stack([each_N, np.ones(len(bad_N))], axis=1))
    assert area.low is not None and area.high is not None
    return area._replace(low=max(0.0, area.low), high=min(1.0, area.high))
