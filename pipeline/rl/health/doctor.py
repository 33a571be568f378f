"""Names what goes wrong in a run of PPO, from the figures that it logs.

Pure functions over the history of the metrics, oldest first. The first row tells of the policy the
run started from, since an update's episodes are sampled before its optimiser steps. "Now" is the
mean of the last `window` rows, "the best so far" the highest mean of any `window` rows, or the
first row. A figure that the history does not give yet is left out. What `START_CHECKS` find is of
the policy that the run started from, from the first batch on: it is told, and ends no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from pipeline.rl.settings import AlarmName, DoctorSettings

History = Sequence[Mapping[str, float]]

SCORE = "objective/scores_raw"
"""What two updates are compared by: no running statistics are in it."""
ENTROPY_SHARE = "policy/entropy_share"
"""The mean entropy of a token's distribution over that of a uniform one."""
KEPT = (
    SCORE,
    "objective/scores_raw_std",
    "objective/score_length_correlation",
    "objective/response_length",
    "objective/ended_share",
    "objective/kl",
    "objective/repeated_share",
    "objective/distinct_share",
    "policy/entropy_avg",
    ENTROPY_SHARE,
    "policy/approxkl_avg",
    "val/explained_variance",
)
"""Metrics that the doctor looks at; a row of a history needs these alone."""
THRESHOLDS: Mapping[AlarmName, float] = {
    # A fall from the best so far, in standard deviations of the first update's scores.
    "collapse": 1.0,
    # Response length over the first update's, or the first over it, with LENGTH_CORRELATION.
    "length_hacking": 2.0,
    # Share of ended responses over its best so far: half of the ends are lost.
    "lost_ends": 0.5,
    # Nats a response; over enough episodes a KL is never negative.
    "negative_kl": -1.0,
    # PPO's clip of 0.2 keeps half the squared log ratio near 0.01: twenty times as much.
    "large_steps": 0.2,
    # Share of the returns' variance that the values foretell, at best in VALUE_GRACE updates.
    "dead_value": 0.02,
    # A token's entropy over the first update's.
    "entropy_collapse": 0.1,
    # Share of four-token runs that stood in the response before.
    "repetition": 0.5,
    # Share of different responses over the first update's.
    "identical_responses": 0.25,
    # Share of ended responses, of the first START_RESPONSES and of as many since, at best.
    "never_ends": 0.05,
    # Responses from the start on, all of one score.
    "equal_scores": 64,
    # Entropy of a token at the start over that of tokens drawn evenly.
    "random_start": 0.7,
}
"""Where the alarms ring: at what no healthy run should show; for `kl_blow_up` the settings tell.

Ziegler et al. 2019 hold 6 nats over 24 tokens, 0.25 a token, and Gao et al. 2023 see the gold
reward fall at many times that, hence the default there."""
LENGTH_CORRELATION = 0.5
"""Correlation of score and length inside an update from which on `length_hacking` rings."""
START_RESPONSES = 64
"""First responses by which `never_ends` rings: fewer tell too little."""
VALUE_GRACE = 30
"""Updates of which not one may be better before `dead_value` rings."""

OR_ELSE = "or, which moves the optimum,"


class Finding(NamedTuple):
    """A figure beside its threshold.

    Attributes:
        figure: what was found.
        threshold: where the alarm rings.
        rings: whether it does.
        words: the figure in words.
    """

    figure: float
    threshold: float
    rings: bool
    words: str


class Advice(NamedTuple):
    """What an alarm likely comes from, and what to change.

    What changes the objective, and so where training leads, comes last and behind `OR_ELSE`; all
    else leaves the optimum of score less KL where it is.
    """

    cause: str
    remedy: str


ADVICE: Mapping[str, Advice] = {
    "collapse": Advice(
        "the steps are too long, or the policy left what the reward can judge",
        f"lower learning_rate or set early_stop_kl, {OR_ELSE} raise kl_coefficient",
    ),
    "length_hacking": Advice(
        "the reward goes by length instead of content",
        f"look at the reward model's accuracy by length difference, {OR_ELSE} add a reward with a "
        "weight against length or raise kl_coefficient",
    ),
    "lost_ends": Advice(
        "responses that never end score as well as those that do",
        f"look at whether answers fit max_new_tokens, {OR_ELSE} set end_rule to min or replace "
        "with an end_penalty below all scores, or raise kl_coefficient",
    ),
    "kl_blow_up": Advice(
        "the reward outweighs the KL penalty, or the steps are too long",
        f"lower learning_rate, {OR_ELSE} raise kl_coefficient or set adaptive_kl",
    ),
    "negative_kl": Advice(
        "the tokens are not drawn from the distribution that their log-probabilities are taken "
        "of, or too few episodes are the mean of",
        "set top_k: 0 and top_p: 1, look at val/rollout_difference, or raise batch_size",
    ),
    "large_steps": Advice(
        "the policy moves much further in an update than the clip allows for",
        "lower learning_rate, epochs or minibatches, or set early_stop_kl",
    ),
    "dead_value": Advice(
        "the value model learns nothing, so that the advantages are noise",
        "raise value_learning_rate or value_coefficient, set value_warmup_updates, or look at "
        "value_start",
    ),
    "entropy_collapse": Advice(
        "the policy gives the same tokens whatever the prompt",
        f"lower learning_rate, {OR_ELSE} raise kl_coefficient or set entropy_coefficient",
    ),
    "repetition": Advice(
        "the reward pays for text that repeats itself",
        f"look at the answers in samples.jsonl, {OR_ELSE} raise kl_coefficient or add a reward "
        "against repetition",
    ),
    "identical_responses": Advice(
        "one response scores well whatever the prompt",
        f"look at whether the reward model reads the prompt, {OR_ELSE} raise kl_coefficient",
    ),
    "never_ends": Advice(
        "the start hardly learned to end an answer, or few fit max_new_tokens",
        f"look at the answers in samples.jsonl, {OR_ELSE} name as policy an sft stage whose "
        "answers end and fit max_new_tokens",
    ),
    "equal_scores": Advice(
        "the reward does not tell the start's answers apart, so that there is nothing to learn",
        f"look at the scores in samples.jsonl, {OR_ELSE} name as policy a start with better "
        "answers or another reward",
    ),
    "random_start": Advice(
        "the start's answers are about as good as random, as an untrained model's are",
        f"look at the answers in samples.jsonl, {OR_ELSE} name as policy a checkpoint that was "
        "trained longer",
    ),
}


def findings(
    history: History,
    *,
    settings: DoctorSettings,
    ends_matter: bool = True,
    value_warmup: int = 0,
    batch_size: int = 1,
) -> dict[str, Finding]:
    """Return every figure that the history gives, by the name of its alarm.

    Args:
        history: metrics of the updates, oldest first; `KEPT` of them.
        settings: which alarms ring, over how many updates.
        ends_matter: whether a response should end.
        value_warmup: updates that train the value model alone.
        batch_size: responses of an update.
    """
    responses = batch_size * len(history)
    findings = {name: check(history, responses) for name, check in START_CHECKS.items()}
    if len(history) > settings.window:
        findings |= {name: check(history, settings) for name, check in CHECKS.items()}
    patient = len(history) > max(VALUE_GRACE, settings.window) + value_warmup
    if not ends_matter:
        findings["lost_ends"] = findings["never_ends"] = None
    if not patient:
        findings["dead_value"] = None
    return {
        name: finding
        for name, finding in findings.items()
        if finding is not None and name not in settings.ignore
    }


def sentence(name: str, finding: Finding) -> str:
    """Return an alarm as one sentence: figure, threshold, likely cause, what to change."""
    advice = ADVICE[name]
    return (
        f"{name}: {finding.words} (alarm at {finding.threshold:g}); likely cause: {advice.cause}; "
        f"{advice.remedy}"
    )


def _above(alarm: AlarmName, figure: float, words: str) -> Finding:
    limit = THRESHOLDS[alarm]
    return Finding(figure, limit, figure > limit, words)


def _below(alarm: AlarmName, figure: float, words: str) -> Finding:
    limit = THRESHOLDS[alarm]
    return Finding(figure, limit, figure < limit, words)


def _now(history: History, key: str, settings: DoctorSettings) -> float:
    return fmean(row[key] for row in history[-settings.window :])


def _best(history: History, key: str, settings: DoctorSettings) -> float:
    """Return the highest of the first row and the means of any `window` rows."""
    values = [row[key] for row in history]
    size = settings.window
    means = (fmean(values[i : i + size]) for i in range(len(values) - size + 1))
    return max(values[0], *means)


def _collapse(history: History, settings: DoctorSettings) -> Finding | None:
    spread = history[0]["objective/scores_raw_std"]
    if spread < 1e-6:
        return None
    best, now = _best(history, SCORE, settings), _now(history, SCORE, settings)
    figure = (best - now) / spread
    words = f"the score fell from {best:.3g} to {now:.3g}, by {figure:.2g} standard deviations"
    return _above("collapse", figure, words)


def _length_hacking(history: History, settings: DoctorSettings) -> Finding | None:
    first = history[0]["objective/response_length"]
    now = _now(history, "objective/response_length", settings)
    correlations = [row["objective/score_length_correlation"] for row in history]
    known = [value for value in correlations if value != 0.0]
    if not known or min(first, now) <= 0:
        return None
    correlation, factor = fmean(known), now / first
    longer = factor >= 1
    figure = factor if longer else 1 / factor
    goes_by_length = correlation if longer else -correlation
    words = (
        f"responses went from {first:.3g} to {now:.3g} tokens, a factor of {figure:.2g}, and score "
        f"and length correlate by {correlation:.2f}"
    )
    finding = _above("length_hacking", figure, words)
    return finding._replace(rings=finding.rings and goes_by_length > LENGTH_CORRELATION)


def _lost_ends(history: History, settings: DoctorSettings) -> Finding | None:
    best = _best(history, "objective/ended_share", settings)
    if best < 0.2:  # they hardly ever ended, so that there is nothing to lose
        return None
    now = _now(history, "objective/ended_share", settings)
    figure = now / best
    words = f"{100 * now:.0f} % of the responses end by themselves, {100 * best:.0f} % at best"
    return _below("lost_ends", figure, words)


def _kl_blow_up(history: History, settings: DoctorSettings) -> Finding:
    figure = _per_token(history, settings)
    words = f"the KL to the reference is {figure:.3g} nats a token"
    return Finding(figure, settings.kl_per_token, figure > settings.kl_per_token, words)


def _per_token(history: History, settings: DoctorSettings) -> float:
    length = _now(history, "objective/response_length", settings)
    return _now(history, "objective/kl", settings) / max(length, 1.0)


def _negative_kl(history: History, settings: DoctorSettings) -> Finding:
    figure = _now(history, "objective/kl", settings)
    words = f"the KL to the reference is {figure:.3g} nats a response, and it can't be negative"
    return _below("negative_kl", figure, words)


def _large_steps(history: History, settings: DoctorSettings) -> Finding:
    figure = _now(history, "policy/approxkl_avg", settings)
    words = f"half the mean squared log ratio inside an update is {figure:.3g}"
    return _above("large_steps", figure, words)


def _dead_value(history: History, settings: DoctorSettings) -> Finding | None:
    key = "val/explained_variance"
    if history[-1][key] == 0.0:  # the returns do not vary
        return None
    span = max(VALUE_GRACE, settings.window)
    figure = _best(history[-span:], key, settings)
    words = f"for {span} updates the values foretold {100 * figure:.3g} % of the returns' variance"
    return _below("dead_value", figure, words)


def _entropy_collapse(history: History, settings: DoctorSettings) -> Finding | None:
    first = history[0]["policy/entropy_avg"]
    if first < 1e-3:
        return None
    now = _now(history, "policy/entropy_avg", settings)
    figure = now / first
    words = f"the entropy of a token fell from {first:.3g} to {now:.3g} nats"
    return _below("entropy_collapse", figure, words)


def _repetition(history: History, settings: DoctorSettings) -> Finding:
    first = history[0]["objective/repeated_share"]
    figure = _now(history, "objective/repeated_share", settings)
    words = (
        f"{100 * figure:.0f} % of a response's four-token runs stood in it before, "
        f"{100 * first:.0f} % at the start"
    )
    # A policy that repeats itself from the start did not learn it here.
    finding = _above("repetition", figure, words)
    return finding._replace(rings=finding.rings and figure > first + 0.2)


def _identical_responses(history: History, settings: DoctorSettings) -> Finding:
    first = history[0]["objective/distinct_share"]
    now = _now(history, "objective/distinct_share", settings)
    figure = now / first
    words = f"{100 * now:.0f} % of the responses are different, {100 * first:.0f} % at the start"
    return _below("identical_responses", figure, words)


CHECKS: Mapping[str, Callable[[History, DoctorSettings], Finding | None]] = {
    "collapse": _collapse,
    "length_hacking": _length_hacking,
    "lost_ends": _lost_ends,
    "kl_blow_up": _kl_blow_up,
    "negative_kl": _negative_kl,
    "large_steps": _large_steps,
    "dead_value": _dead_value,
    "entropy_collapse": _entropy_collapse,
    "repetition": _repetition,
    "identical_responses": _identical_responses,
}


def _never_ends(history: History, responses: int) -> Finding | None:
    rows = math.ceil(START_RESPONSES * len(history) / responses)
    if len(history) < rows:
        return None
    shares = [row["objective/ended_share"] for row in history]
    means = [fmean(shares[at : at + rows]) for at in range(len(shares) - rows + 1)]
    figure, best = means[0], max(means)
    ended = "none" if figure == 0 else f"{100 * figure:.1f} %"
    count = rows * responses // len(history)
    words = f"{ended} of the first {count} responses ended by itself"
    finding = _below("never_ends", figure, words)
    return finding._replace(rings=best < finding.threshold)


def _equal_scores(history: History, responses: int) -> Finding | None:
    score = history[0][SCORE]
    alike = (abs(row[SCORE] - score) < 1e-6 for row in history)
    if not all(alike) or any(row["objective/scores_raw_std"] > 1e-6 for row in history):
        return None
    limit = THRESHOLDS["equal_scores"]
    words = f"all {responses} responses so far score {score:.3g}"
    return Finding(responses, limit, responses >= limit, words)


def _random_start(history: History, responses: int) -> Finding | None:
    figure = history[0].get(ENTROPY_SHARE)
    if figure is None:  # a state from before the figure was kept
        return None
    words = f"a token of the start has {100 * figure:.0f} % of the entropy of tokens drawn evenly"
    return _above("random_start", figure, words)


START_CHECKS: Mapping[str, Callable[[History, int], Finding | None]] = {
    "never_ends": _never_ends,
    "equal_scores": _equal_scores,
    "random_start": _random_start,
}
