"""The outcome of an evaluation in sentences, of the figures that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.words import counted
from pipeline.evaluation.judge.over_optimisation import MOVED
from pipeline.evaluation.judge.summary import kind_of, main_win_rate

Results = Mapping[str, Any]
_CALLED = {
    "gold": "the gold annotator",
    "people": "people",
    "proxy": "the reward model",
    "reward_model": "the reward model {}",
    "llm": "the model {}",
    "http": "the server {}",
}
_STATES = {
    "better": "{a} is better than {b}",
    "not shown": "{a} is not shown to be better or worse than {b}",
    "worse": "{a} is worse than {b}",
}


def verdict(results: Results, *, held_out: str = "") -> list[str]:
    """Return the outcome; the first sentence says whether the last is better than the one before.

    Args:
        results: what `evaluation.json` or `report.json` holds.
        held_out: "held-out " where the prompts are known to be.

    Returns:
        Nothing without a win rate of the last two checkpoints.
    """
    rate = main_win_rate(results)
    if rate is None:
        return []
    judges, judge = results.get("judges") or {}, rate["judge"]
    parts = [
        f"{outcome(rate)}: {_percent(rate['rate'], rate['ci95'])} of "
        f"{counted(rate['n'], f'{held_out}prompt')} by {called(judge, judges)}"
    ]
    even = rate.get("rate_length_controlled")
    if even is not None:
        parts.append(f"of equal length {_percent(even, rate.get('ci95_length_controlled'))}")
    found = results.get("over_optimisation") or {}
    turn = found.get("turn")
    furthest = max((point["kl"] for point in found.get("points") or ()), default=0.0)
    if turn is not None:
        parts.append(f"{found.get('judge', 'gold')} turned at KL {turn['kl']:.1f}")
    elif furthest >= MOVED:
        parts.append(f"no sign of over-optimisation up to KL {furthest:.1f}")
    return ["; ".join(parts) + ".", *_doubts(results, rate)]


def state(ci95: Sequence[float] | None, even: float = 0.5) -> str:
    """Return "better" or "worse" where an interval leaves out the even value, else "not shown"."""
    if ci95 is None or ci95[0] <= even <= ci95[1]:
        return "not shown"
    return "better" if ci95[0] > even else "worse"


def outcome(rate: Mapping[str, Any]) -> str:
    """Return how one checkpoint stands to another, in words."""
    return _STATES[state(rate["ci95"])].format(a=rate["a"], b=rate["b"])


def called(judge: str, judges: Mapping[str, Any]) -> str:
    """Return who judged, in words; of a name that two evaluations used, in which."""
    stage, _, name = judge.rpartition("/")
    words = _CALLED.get(kind_of(judge, judges), "{}").format(name)
    if judges.get(judge, {}).get("held_out"):
        words = words.replace("the ", "the held-out ", 1)
    return f"{words} in {stage}" if stage else words


def _doubts(results: Results, rate: Mapping[str, Any]) -> list[str]:
    """Return what speaks against taking the win rate as it is."""
    doubts = []
    shown, even = state(rate["ci95"]), rate.get("rate_length_controlled")
    if shown != "not shown" and even is not None:
        at_even = state(rate.get("ci95_length_controlled"))
        if at_even != shown:
            doubts.append(
                f"At equal length that is {'not shown' if at_even == 'not shown' else 'reversed'}: "
                "the answers differ in length, too."
            )
    judges = results.get("judges") or {}
    stages = judges.get(rate["judge"], {}).get("trained_against_by")
    if stages:
        doubts.append(
            f"{rate['judge']} is not held out: {', '.join(stages)} trained against it or chose "
            "by it, so that it says little."
        )
    elif kind_of(rate["judge"], judges) == "proxy":
        doubts.append(
            f"No judge but the reward model was asked: if {rate['a']} was trained against it, "
            "that says little."
        )
    elif shown == "worse":
        doubts += _parting(results, rate)
    return doubts


def _parting(results: Results, rate: Mapping[str, Any]) -> list[str]:
    """Return that the reward model prefers what another judge finds worse."""
    if (results.get("over_optimisation") or {}).get("turn") is not None:
        return []  # it has a sentence of its own
    pair, judges = (rate["a"], rate["b"], "proxy"), results.get("judges") or {}
    return [
        f"The reward model prefers {rate['a']} all the same, on {_percent(r['rate'], r['ci95'])}: "
        "it was over-optimised."
        for r in results["win_rates"]
        if (r["a"], r["b"], kind_of(r["judge"], judges)) == pair and state(r["ci95"]) == "better"
    ]


def _percent(share: float, ends: Sequence[float] | None) -> str:
    interval = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""
    return f"{100 * share:.1f} %{interval}"
