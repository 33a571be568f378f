"""What a row of `tasks.jsonl` is worth: numbers by metric, of which the figures are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
Numbers = NDArray[np.float64]
CHANCE = "chance"
"""Metric: what guessing gets; it has no interval."""

FORMS: Mapping[str, Callable[[Numbers], Numbers]] = {
    "mean": lambda rate: rate,
    "perplexity": lambda rate: np.exp(-rate),
    "weighted_perplexity": lambda rate: np.exp(-rate),
    "bits_per_byte": lambda rate: -rate / math.log(2),
}
"""How a figure follows from the sum of values over the sum of sizes, by lm-eval's names."""


class Measure(NamedTuple):
    """A row's share in a figure.

    Attributes:
        metric: name of the figure.
        value: the row's number.
        reading: how an answer was read, where there are several ways.
        size: what it counts for: 1, or the words or bytes of a text.
        form: one of `FORMS`.
    """

    metric: str
    value: float
    reading: str | None = None
    size: float = 1.0
    form: str = "mean"
