"""What an evaluation tells the console, and the stage's final metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.words import counted
from pipeline.evaluation.judge.pathologies import pathology_lines
from pipeline.evaluation.judge.ratings import elo
from pipeline.evaluation.judge.texts import text_lines

PLAIN_FIGURES = (
    "perplexity",
    "bits_per_byte",
    "gold_reward",
    "proxy_reward",
    "kl_to_reference",
    "mean_length",
    "ended_share",
    "repetition",
    "distinct_1",
    "distinct_2",
    "distinct_3",
)


def stage_metrics(results: Mapping[str, Any]) -> dict[str, float | int | str]:
    """Return the final metrics: every figure as `<checkpoint>/<figure>`, and the main win rate."""
    metrics: dict[str, float | int | str] = {"n_prompts": results["prompts"]["n"]}
    for name, figures in results["checkpoints"].items():
        named = {key: figures.get(key) for key in PLAIN_FIGURES}
        named |= {key: entry["share"] for key, entry in figures.get("shares", {}).items()}
        named |= {f"scores/{j}": entry["mean"] for j, entry in figures.get("scores", {}).items()}
        metrics |= {f"{name}/{key}": value for key, value in named.items() if value is not None}
    for figure in results["tasks"]:
        metrics[f"{figure['checkpoint']}/{task_metric(figure)}"] = figure["value"]
    main = main_win_rate(results)
    if main is not None:
        metrics |= {"win_rate": main["rate"], "win_rate/judge": main["judge"]}
        metrics |= {"win_rate/low": main["ci95"][0], "win_rate/high": main["ci95"][1]}
        if main["rate_length_controlled"] is not None:
            metrics["win_rate/length_controlled"] = main["rate_length_controlled"]
    return metrics


def task_metric(figure: Mapping[str, Any]) -> str:
    """Return what a figure of a task is called: task, metric and reading."""
    reading = [figure["reading"]] if "reading" in figure else []
    return "/".join([figure["task"], figure["metric"], *reading])


def main_win_rate(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the win rate of the last checkpoint over the one before.

    By gold if gold judged, else by people, else by whom else there is; by the proxy, which the last
    one may have been trained to please, or by a judge that one was, where nobody else judged.
    """
    judges = results.get("judges") or {}
    pair = [*results["checkpoints"]][:-3:-1]
    rates = [r for r in results["win_rates"] if [r["a"], r["b"]] == pair and r["rate"] is not None]
    order = {"gold": 0, "people": 1, "proxy": 3}

    def place(rate: Mapping[str, Any]) -> int:
        pleased = judges.get(rate["judge"], {}).get("trained_against_by")
        return 3 if pleased else order.get(kind_of(rate["judge"], judges), 2)

    return min(rates, key=place, default=None)


def kind_of(judge: str, judges: Mapping[str, Any]) -> str:
    """Return a judge's kind, which is its name where an evaluation does not tell."""
    return str(judges.get(judge, {}).get("kind", judge))


def say_results(results: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Tell the main figures in a few lines."""
    for name, figures in results["checkpoints"].items():
        parts = [
            f"{label} {figures[key]:.{digits}f}"
            for key, label, digits in (
                ("gold_reward", "gold", 3),
                ("proxy_reward", "proxy", 3),
                ("kl_to_reference", "KL", 2),
                ("mean_length", "length", 1),
                ("bits_per_byte", "bits a byte", 3),
            )
            if figures.get(key) is not None
        ]
        parts += [
            f"{judge} {entry['mean']:.3f}" for judge, entry in figures.get("scores", {}).items()
        ]
        say(f"{name}: {', '.join(parts)}")
        for note in figures["notes"]:
            say(f"{name}: {note}")
    for rate in results["win_rates"]:
        say(win_rate_line(rate))
    for line in [*rating_lines(results["ratings"]), *judge_lines(results)]:
        say(line)
    for line in [*text_lines(results), *pathology_lines(results["pathologies"])]:
        say(line)
    for figure in results["tasks"]:
        if figure["ci95"] is not None:
            low, high = figure["ci95"]
            say(
                f"{figure['checkpoint']}: {task_metric(figure)} {figure['value']:.3f} "
                f"({low:.3f} to {high:.3f}) of {counted(figure['n'], 'question')}"
            )
    for line in _pool_lines(results):
        say(line)


def _pool_lines(results: Mapping[str, Any]) -> list[str]:
    """Return what choosing the best of n from a checkpoint comes to, where it was asked for."""
    found = results.get("over_optimisation")
    return [f"best of n from {found['checkpoint']}: {found['sentence']}"] if found else []


def win_rate_line(rate: Mapping[str, Any]) -> str:
    """Return a win rate in words, and beside it that of equal length where there is one."""
    even = ""
    if rate["rate_length_controlled"] is not None:
        even = f"; of equal length {_percent(rate, '_length_controlled')}"
    who = f"{rate['a']} over {rate['b']} by {rate['judge']}"
    return f"{who}: {_percent(rate)} of {counted(rate['n'], 'prompt')}{even}"


def _percent(rate: Mapping[str, Any], suffix: str = "") -> str:
    low, high = rate[f"ci95{suffix}"]
    return f"{rate[f'rate{suffix}']:.1%} ({low:.1%} to {high:.1%})"


def rating_lines(ratings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each judge of more than two checkpoints, the best one first.

    Of two the win rate says the same.
    """
    lines = []
    for judge in dict.fromkeys(row["judge"] for row in ratings):
        rows = [row for row in ratings if row["judge"] == judge]
        rated = [row for row in rows if row["bradley_terry"] is not None]
        if len(rows) < 3:
            continue
        rated.sort(key=lambda row: -float(row["bradley_terry"]))
        parts = [f"{row['checkpoint']} {row['elo']:.0f}{_elo_ends(row)}" for row in rated]
        lost = [row["checkpoint"] for row in rows if row["bradley_terry"] is None]
        told = f"; never compared with it: {', '.join(lost)}" if lost else ""
        anchor = rows[0]["checkpoint"]
        lines.append(f"Elo by {judge}, {anchor} being 1000: {', '.join(parts)}{told}")
    return lines


def judge_lines(results: Mapping[str, Any]) -> list[str]:
    """Return of each judge what one must know to trust it, as far as there is such."""
    by_kind = {"people": _people_line, "llm": _llm_line, "reward_model": _held_out_line}
    by_kind["http"] = lambda name, told: f"{name}: scores of the server at {told['url']}"
    judges = results.get("judges") or {}
    return [by_kind[t["kind"]](name, t) for name, t in judges.items() if t["kind"] in by_kind]


def _held_out_line(name: str, told: Mapping[str, Any]) -> str:
    """Return whether a reward model was held out from the training of what it judges."""
    stages = told["trained_against_by"]
    if stages:
        who = ", ".join(stages)
        return f"warning: {name} is not held out: {who} trained against it or chose by it"
    if told["held_out"] is None:
        return f"{name}: whether a checkpoint was trained against it is not known"
    return f"{name} is held out: no checkpoint was trained against it"


def _llm_line(name: str, told: Mapping[str, Any]) -> str:
    """Return what a language model compared, and how the order of answers swayed it."""
    parts = [f"{name}: {told['model']} compared {counted(told['pairs'], 'pair')} in both orders"]
    if told["same_answers"]:
        parts.append(f"{counted(told['same_answers'], 'pair')} read the same and tie")
    if told["unparsed"]:
        parts.append(f"{counted(told['unparsed'], 'pair')} got no verdict and are left out")
    for key, what in (
        ("flips", "the verdict turned with the order, and ties, on"),
        ("first_wins", "the answer shown first won"),
    ):
        if told[key]["value"] is not None:
            low, high = told[key]["ci95"]
            parts.append(f"{what} {told[key]['value']:.1%} ({low:.1%} to {high:.1%})")
    return "; ".join(parts)


def _people_line(name: str, people: Mapping[str, Any]) -> str:
    """Return what people compared, how well they agree, and whether the place swayed them."""
    parts = [
        f"{name}: {people['labelled']} of {counted(people['pairs'], 'pair')} compared, "
        f"{counted(people['labels'], 'label')} by {counted(people['annotators'], 'annotator')}"
    ]
    if people.get("closed"):
        parts.append(f"its campaign is closed at {people['complete']}")
    if people["same_answers"]:
        parts.append(f"{counted(people['same_answers'], 'pair')} read the same and tie")
    for key, what in (("agreement", "two agree on"), ("left_wins", "the answer on the left won")):
        found = people[key]
        if found["value"] is not None:
            ends = "" if found["low"] is None else f" ({found['low']:.1%} to {found['high']:.1%})"
            parts.append(f"{what} {found['value']:.1%}{ends}")
    return "; ".join(parts)


def open_lines(results: Mapping[str, Any]) -> list[str]:
    """Return that people have not said all yet, while that is so."""
    return [
        f"the judgement of {name} is still open: {told['complete']} of "
        f"{counted(told['pairs'], 'pair')} have all their labels"
        for name, told in (results.get("judges") or {}).items()
        if told["kind"] == "people" and told["open"]
    ]


def _elo_ends(row: Mapping[str, Any]) -> str:
    if row["ci95"] is None:
        return ""
    low, high = map(elo, row["ci95"])
    return f" ({low:.0f} to {high:.0f})"
