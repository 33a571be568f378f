"""The report's roll-outs: samples of PPO's training, each token with what PPO made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from data.words import counted
from pipeline.evaluation.report.view import number, prompt_text

MOST_TOKENS = 300
"""Of a response that are shown."""
FULL = 45
"""Per cent of the colour at the end of the scale: text stays readable on it."""
READINGS = (
    ("kl", "KL", "log-probability less the reference’s, nats", "likelier", "less likely"),
    ("value", "Value", "what the value model foretells of the return", "positive", "negative"),
    ("advantage", "Advantage", "how far it went better than foretold", "better", "worse"),
)
"""Figure of a token, its name, what it is, and what its two colours say."""


def rollouts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return roll-outs of the first, a middle and the last update with shaded tokens, and a legend.

    None where no token was written.

    Args:
        rows: of samples.jsonl of a stage of PPO.
    """
    told = [row for row in rows if "by_token" in row]
    if not told:
        return None
    updates = sorted({row["update"] for row in told})
    picked = (updates[0], updates[len(updates) // 2], updates[-1])
    shown = [row for row in told if row["update"] in picked]
    ends = {key: _end([row["by_token"] for row in shown], key) for key, *_ in READINGS}
    legend = [
        {"key": key, "name": name, "what": what, "up": up, "down": down, "end": number(ends[key])}
        for key, name, what, up, down in READINGS
    ]
    return {
        "legend": legend,
        "episodes": [_episode(row, ends) for row in shown],
        "foreign": any("own" in row["by_token"] for row in shown),
    }


def _end(told: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return where a colour is full: beyond nineteen of twenty tokens."""
    sizes = np.abs([value for by in told for value in compress(by[key][:MOST_TOKENS], _own(by))])
    return float(np.quantile(sizes, 0.95)) if sizes.size else 0.0


def _episode(row: Mapping[str, Any], ends: Mapping[str, float]) -> dict[str, Any]:
    columns = row["by_token"]
    figures = [columns[key][:MOST_TOKENS] for key in ends]
    texts, owns = (column[:MOST_TOKENS] for column in (columns["text"], _own(columns)))
    tokens = [
        _token(text, values, ends) if own else _foreign(text)
        for text, own, *values in zip(texts, owns, *figures, strict=True)
    ]
    tags = [f"update {row['update']}", f"score {number(row['score'])}", f"KL {number(row['kl'])}"]
    tags.append(counted(row["tokens"], "token") + ("" if row["ended"] else ", cut off"))
    left = len(columns["text"]) - len(tokens)
    return {
        "prompt": prompt_text(row["prompt"]),
        "tokens": tokens,
        "tags": tags,
        "left": counted(left, "more token") if left else "",
    }


def _own(columns: Mapping[str, Any]) -> list[bool]:
    """Return which tokens the policy chose: all, where no tool was called."""
    own: list[bool] = columns.get("own") or [True] * len(columns["text"])
    return own


def _token(text: str, values: Sequence[float], ends: Mapping[str, float]) -> dict[str, Any]:
    told = (
        f"{name} {number(value, 'signed')}"
        for (_, name, *_), value in zip(READINGS, values, strict=True)
    )
    shades = (
        _shade(key, value, end) for (key, end), value in zip(ends.items(), values, strict=True)
    )
    style = ";".join(shades)
    return {"text": _visible(text), "told": ", ".join(told), "style": style, "foreign": False}


def _foreign(text: str) -> dict[str, Any]:
    told = "put there by a tool, so that no figure is of it"
    return {"text": _visible(text), "told": told, "style": "", "foreign": True}


def _visible(text: str) -> str:
    """Return a token so that it is seen: part of a character as a ring, a new line by its sign."""
    return text.replace("\n", "↵\n") if text else "◌"


def _shade(key: str, value: float, end: float) -> str:
    """Return a token's colour for a reading, as a custom property of CSS."""
    share = min(1.0, abs(value) / end) if end else 0.0
    return f"--{key}:var(--{'up' if value > 0 else 'down'}) {round(FULL * share)}%"
