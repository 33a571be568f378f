"""Counts what checkpoints make of texts, and what training cost them there.

`texts.jsonl` has one row for each text and checkpoint:

    checkpoint, index, nats, tokens, bytes, given_back

so `text_figures([*read_json_lines(path)])` gives the report's numbers again. A text's bytes are
those of the text itself, so that bits per byte compare across tokenizers. What later checkpoints
lose against the first on the same texts is the alignment tax (Askell et al., 2021; Ouyang et al.,
2022): where the first is the base model, what training to answer cost of its language.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.intervals import Estimate, clustered_ratio
from data.words import counted
from pipeline.training.objectives.perplexity import perplexity_figures

Row = Mapping[str, Any]
TEXTS = "texts.jsonl"


class TextFigures(NamedTuple):
    """Figures of each checkpoint, and what training cost those after the first."""

    checkpoints: dict[str, dict[str, Any]]
    alignment_tax: list[dict[str, Any]]


def text_figures(rows: Iterable[Row]) -> TextFigures:
    """Return what checkpoints make of texts.

    Intervals are over texts, a text with all its tokens and bytes; differences are paired by text.

    Args:
        rows: losses, checkpoints in the order of training.
    """
    by_name: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_name.setdefault(row["checkpoint"], {})[row["index"]] = row
    names = list(by_name)
    return TextFigures(
        {name: _figures([*mine.values()]) for name, mine in by_name.items()},
        [_tax(name, by_name[name], by_name[names[0]]) for name in names[1:]],
    )


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    nats, tokens, size = (sum(row[key] for row in rows) for key in ("nats", "tokens", "bytes"))
    summed = perplexity_figures(nats, tokens, size)
    return {
        "perplexity": summed["perplexity"],
        "bits_per_byte": summed["bits_per_byte"],
        "bits_per_byte_ci95": _bits([(row["nats"], row["bytes"]) for row in rows]).ci95,
        "texts_not_given_back": sum(not row["given_back"] for row in rows),
    }


def _tax(name: str, mine: Mapping[int, Row], base: Mapping[int, Row]) -> dict[str, Any]:
    both = [(mine[index], base[index]) for index in mine if index in base]
    tax = _bits([(a["nats"] - b["nats"], a["bytes"]) for a, b in both])
    return {
        "checkpoint": name,
        "bits_per_byte": _bits([(a["nats"], a["bytes"]) for a, _ in both]).value,
        "difference": tax.value,
        "ci95": tax.ci95,
        "n": tax.n,
    }


def _bits(parts: Sequence[tuple[float, float]]) -> Estimate:
    """Return bits per byte of texts' nats and bytes."""
    return clustered_ratio(np.reshape(parts, (-1, 2)) / (math.log(2), 1))


def text_lines(results: Mapping[str, Any]) -> list[str]:
    """Return what training cost on the first checkpoint's texts, and whose tokens lose some."""
    names = list(results["checkpoints"])
    lines = []
    for tax in results["alignment_tax"]:
        ends = ""
        if tax["ci95"] is not None:
            ends = " ({:+.3f} to {:+.3f})".format(*tax["ci95"])
        lines.append(
            f"{tax['checkpoint']}: alignment tax {tax['difference']:+.3f}{ends} bits a byte, the "
            f"change since {names[0]} on the same {counted(tax['n'], 'text')}"
        )
    for name, figures in results["checkpoints"].items():
        lost = figures.get("texts_not_given_back")
        if lost:
            lines.append(
                f"{name}: its tokenizer drops or changes characters of "
                f"{counted(lost, 'text')}; its bits per byte are too low"
            )
    return lines
