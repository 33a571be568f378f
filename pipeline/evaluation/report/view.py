"""Turns the report's JSON into what the page shows: sentences, cards and tables of text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from math import exp
from typing import Any

from data.records import Prompt, turn_text
from data.words import counted
from pipeline.evaluation.judge.summary import main_win_rate
from pipeline.evaluation.judge.verdict import called

SAMPLES = 12
LARGEST = 700.0
"""Loss whose exponential is still a float."""
COLOURS = 8
FIGURES = (
    ("Gold reward", "gold_reward", "number", "by the embedded world's judge, 0 to 1"),
    ("Proxy reward", "proxy_reward", "number", "by the reward model that PPO trains against"),
    ("KL to the reference", "kl_to_reference", "number", "nats a response, on own samples"),
    ("Response length", "mean_length", "short", "tokens"),
    ("Ends by itself", "ended_share", "percent", "responses with an end of sequence"),
    ("Calls of tools", "calls_per_response", "short", "a response"),
    ("Calls that fail", "failed_call_share", "percent", "of all calls"),
    ("Repetition", "repetition", "percent", "three-word runs seen before in the response"),
    ("Distinct-1", "distinct_1", "number", "different words over all words"),
    ("Distinct-2", "distinct_2", "number", "different pairs of words over all pairs"),
    ("Distinct-3", "distinct_3", "number", "different runs of three over all"),
)
MANNERS = (
    ("Right", "correct", "of the questions the judge can answer"),
    ("Condescending", "condescending", "talks down to the reader"),
    ("Long-winded", "long_winded", "goes around the point"),
    ("Invented", "invented", "states something false"),
    ("Admits ignorance", "admits_ignorance", "says that it does not know"),
)
FLOORS = (
    ("", "the model"),
    ("unigram_", "the most frequent token each time"),
    ("copy_", "copying alone"),
)
"""What metrics of a pretraining objective begin with, and whose they are."""
Figures = Mapping[str, Any]


def number(value: float | None, kind: str = "number") -> str:
    """Return a figure as text; a dash when there is none."""
    if value is None:
        return "–"
    if kind == "percent":
        return f"{100 * value:.1f}\u00a0%"
    if kind == "short":
        return f"{value:.1f}"
    if kind == "points":
        return f"{100 * value:+.1f}".replace("-", "−")
    if kind == "signed":
        return ("+" if value > 0 else "") + number(value)
    digits = 0 if abs(value) >= 1000 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def interval(ends: Sequence[float] | None, kind: str = "number") -> str:
    """Return an interval as text, "" when there is none."""
    if not ends:
        return ""
    low, high = (number(end, kind).removesuffix("\u00a0%") for end in ends)
    return f"{low} to {high}"


def clock(seconds: float | None) -> str:
    """Return a time as "2 min 5 s", the way a person says it."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def colours(checkpoints: Iterable[str]) -> dict[str, int]:
    """Return the series colour of each checkpoint."""
    return {name: place % COLOURS for place, name in enumerate(checkpoints)}


def cards(report: Figures) -> list[dict[str, str]]:
    """Return the headline figures: label, value and note of each."""
    cards: list[dict[str, str]] = []
    rate = main_win_rate(report)
    if rate is not None:
        label = f"{rate['a']} over {rate['b']}"
        _card(cards, label, number(rate["rate"], "percent"), f"preferred by {rate['judge']}")
    names = list(report["checkpoints"])
    if names:
        last = report["checkpoints"][names[-1]]
        _card(cards, "Gold reward", number(last.get("gold_reward")), names[-1])
        correct = last.get("shares", {}).get("correct", {})
        _card(cards, "Right answers", number(correct.get("share"), "percent"), names[-1])
        _card(cards, "KL", number(last.get("kl_to_reference")), "nats a response")
    quality = report["reward_model"] or {}
    accuracy = number(quality.get("accuracy"), "percent")
    _card(cards, "Reward model", accuracy, "of unseen pairs")
    which = "stages that are up to date" if report["not_done"] else "all stages"
    if report["stages"]:
        _card(cards, "Time", clock(report["seconds"]), which)
    if report["peak_rss_mb"]:
        _card(cards, "Memory", f"{report['peak_rss_mb'] / 1000:.1f} GB", "at the peak")
    return cards


def _card(cards: list[dict[str, str]], label: str, value: str, note: str) -> None:
    if value != "–":
        cards.append({"label": label, "value": value, "note": note})


def stage_rows(report: Figures) -> list[dict[str, str]]:
    """Return the table of stages."""
    rows = []
    for name, stage in report["stages"].items():
        metric = stage.get("main_metric") or ""
        value = stage["metrics"].get(metric)
        shown = number(value) if isinstance(value, (int, float)) else str(value or "")
        memory = stage["peak_rss_mb"]
        rows.append(
            {
                "name": name,
                "kind": stage["kind"],
                "state": stage["state"].partition(": ")[0],
                "reason": stage["state"].partition(": ")[2],
                "time": clock(stage["seconds"]),
                "memory": f"{memory:,.0f} MB" if memory else "–",
                "size": _size(stage["size"]),
                "metric": metric if shown else "",
                "value": shown,
                "digest": str(stage["digest"])[:12],
            }
        )
    left = [name for name in report["not_done"] if name not in report["stages"]]
    blank = dict.fromkeys(
        ("kind", "reason", "time", "memory", "size", "metric", "value", "digest"), ""
    )
    return rows + [{**blank, "name": n, "kind": n, "state": report["not_done"][n]} for n in left]


def pretraining_lines(report: Figures) -> list[str]:
    """Return what each pretraining stage learned, beside readers that know no language."""
    lines = []
    for name, stage in report["stages"].items():
        metrics = stage["metrics"]
        if name in report["not_done"] or metrics.get("eval/unigram_accuracy") is None:
            continue
        told = [
            f"{number(metrics[accuracy], 'percent')} right and a perplexity of "
            f"{number(exp(min(metrics[f'eval/{key}loss'], LARGEST)))} by {what}"
            for key, what in FLOORS
            if metrics.get(accuracy := f"eval/{key}accuracy") is not None
        ]
        lines.append(f"{name}, of the tokens asked for in held-out text: {'; '.join(told)}.")
    return lines


def alarm_rows(report: Figures) -> list[dict[str, str]]:
    """Return what the doctor said of each stage, in order."""
    return [
        {
            "stage": name,
            "update": str(alarm["update"]),
            "alarm": str(alarm["alarm"]).replace("_", " "),
            "told": f"{alarm['told']} (alarm at {alarm['threshold']:g})",
            "advice": f"Likely cause: {alarm['cause']}. What to do: {alarm['remedy']}.",
        }
        for name, stage in report["stages"].items()
        if name not in report["not_done"]
        for alarm in stage["alarms"]
    ]


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def judge_label(judge: str, judges: Figures) -> str:
    """Return a judge's name as a heading."""
    name = called(judge, judges).removeprefix("the ")
    return name[:1].upper() + name[1:]


def figure_rows(report: Figures) -> list[dict[str, Any]]:
    """Return the table of checkpoints, one row a figure; rows without any value are left out."""
    rows = []
    for label, key, kind, note in FIGURES:
        cells = [
            {"value": number(f.get(key), kind), "ci95": interval(f.get(f"{key}_ci95"), kind)}
            for f in report["checkpoints"].values()
        ]
        if any(cell["value"] != "–" for cell in cells):
            rows.append({"label": label, "note": note, "cells": cells})
        if key == "proxy_reward":
            rows += _further_scores(report)
    return rows


def _further_scores(report: Figures) -> list[dict[str, Any]]:
    """Return a row for each further judge that scores."""
    scores = [f.get("scores", {}) for f in report["checkpoints"].values()]
    return [
        {
            "label": judge_label(judge, report.get("judges") or {}),
            "note": "mean score",
            "cells": [
                {
                    "value": number(mine.get(judge, {}).get("mean")),
                    "ci95": interval(mine.get(judge, {}).get("ci95")),
                }
                for mine in scores
            ],
        }
        for judge in dict.fromkeys(judge for mine in scores for judge in mine)
    ]


def manner_rows(report: Figures) -> list[dict[str, Any]]:
    """Return the table of manners, with the paired difference of the last two checkpoints."""
    checkpoints = report["checkpoints"]
    names = list(checkpoints)
    differences = {
        row["measure"]: row
        for row in report["differences"]
        if len(names) > 1 and [row["b"], row["a"]] == names[-2:]
    }
    rows = []
    for label, key, note in MANNERS:
        shares = [f.get("shares", {}).get(key, {}) for f in checkpoints.values()]
        if any(shares):
            rows.append(_manner_row(label, note, shares, differences.get(key)))
    kinds = sorted({k for f in checkpoints.values() for k in f.get("correct_by_kind", {})})
    for kind in kinds:
        shares = [f.get("correct_by_kind", {}).get(kind, {}) for f in checkpoints.values()]
        if any(share.get("n") for share in shares):
            rows.append({**_manner_row(f"Right: {kind}", "", shares, None), "minor": True})
    return rows


def _manner_row(
    label: str, note: str, shares: Sequence[Figures], difference: Figures | None
) -> dict[str, Any]:
    cells = [
        {
            "value": number(share.get("share"), "percent"),
            "ci95": interval(share.get("ci95"), "percent"),
            "n": share.get("n", 0),
        }
        for share in shares
    ]
    change = {
        "value": number(difference["difference"], "points") if difference else "",
        "ci95": interval(difference["ci95"], "points") if difference else "",
    }
    return {"label": label, "note": note, "cells": cells, "change": change, "minor": False}


def sample_groups(
    rows: Sequence[Figures], *, seed: int, count: int = SAMPLES
) -> list[dict[str, Any]]:
    """Return some prompts with every checkpoint's answer, drawn by the seed alone."""
    by_prompt: dict[int, list[Figures]] = {}
    for row in rows:
        by_prompt.setdefault(row["index"], []).append(row)
    places = sorted(by_prompt)
    chosen = sorted(random.Random(f"samples/{seed}").sample(places, min(count, len(places))))
    return [
        {"prompt": prompt_text(by_prompt[place][0]["prompt"]), "answers": by_prompt[place]}
        for place in chosen
    ]


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as a reader wants it: a lone question as it is, a chat with its roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return turn_text(prompt[0])
    return "\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in prompt)


def answer_tags(answer: Figures) -> list[tuple[str, str]]:
    """Return the labels of a judged answer: text and tone (good, bad or plain)."""
    tags = [
        ("plain", counted(answer["n_tokens"], "token") + ("" if answer["ended"] else ", cut off"))
    ]
    if answer["proxy"] is not None:
        tags.insert(0, ("plain", f"proxy {answer['proxy']:.2f}".replace("-", "−")))
    if answer["gold"] is not None:
        tags.insert(0, ("plain", f"gold {answer['gold']:.2f}"))
    assessment = answer["assessment"] or {}
    if assessment.get("outcome"):
        tone = {"right": "good", "wrong": "bad", "broken": "bad"}.get(
            assessment["outcome"], "plain"
        )
        tags.append((tone, assessment["outcome"]))
    for key in ("condescending", "long_winded", "invented"):
        if assessment.get(key):
            tags.append(("bad", key.replace("_", "-")))
    return [(text, tone) for tone, text in tags]
