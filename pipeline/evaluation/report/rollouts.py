"""The report's roll-outs: samples of PPO's training, each token with what PPO made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    ends = {key: _end([row["by_token"][key] for row in shown]) for key, *_ in READINGS}
    legend = [
        {"key": key, "name": name, "what": what, "up": up, "down": down, "end": number(ends[key])}
        for key, name, what, up, down in READINGS
    ]
    return {"legend": legend, "episodes": [_episode(row, ends) for row in shown]}


def _end(values: Sequence[Sequence[float]]) -> float:
    """Return where a colour is full: beyond nineteen of twenty tokens."""
    sizes = np.abs([value for each in values for value in each[:MOST_TOKENS]])
    return float(np.quantile(sizes, 0.95)) if sizes.size else 0.0


def _episode(row: Mapping[str, Any], ends: Mapping[str, float]) -> dict[str, Any]:
    columns = row["by_token"]
    figures = [columns[key][:MOST_TOKENS] for key in ends]
    tokens = [
        {
            "text": _visible(text),
            "told": ", ".join(
                f"{name} {number(value, 'signed')}"
                for (_, name, *_), value in zip(READINGS, values, strict=True)
            ),
            "style": ";".join(
                _shade(key, value, end)
                for (key, end), value in zip(ends.items(), values, strict=True)
            ),
        }
        for text, *values in zip(columns["text"][:MOST_TOKENS], *figures, strict=True)
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


def _visible(text: str) -> str:
    """Return a token so that it is seen: part of a character as a ring, a new line by its sign."""
    return text.replace("\n", "↵\n") if text else "◌"


def _shade(key: str, value: float, end: float) -> str:
    """Return a token's colour for a reading, as a custom property of CSS."""
    share = min(1.0, abs(value) / end) if end else 0.0
    return f"--{key}:var(--{'up' if value > 0 else 'down'}) {round(FULL * share)}%"
