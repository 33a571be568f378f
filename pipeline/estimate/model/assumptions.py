"""What an estimate takes for granted, all of it told and open to change on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data.errors import UsageError, nearest

QUANTITIES = {
    "rows": "rows that the stage reads",
    "prompt_tokens": "mean tokens of a prompt",
    "answer_tokens": "mean tokens of an answer, or of a text",
    "longest": "tokens of the longest row",
    "response_tokens": "mean tokens of a sampled response",
}
"""What `--assume STAGE.QUANTITY=NUMBER` may give."""

ROWS = 10_000
PROMPT_TOKENS = 128
ANSWER_TOKENS = 128
"""Of sources that are not read, where nothing else tells."""
BYTES_PER_TOKEN = 4.0
"""Of a tokenizer that does not exist yet, or is not here."""
SIDE_TOKENS = 4
"""Tokens that a chat template puts around a turn."""

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Rates:
    """How much of the peak is reached.

    Attributes:
        utilisation: share of the peak of matrix products that training and scoring reach. Large
            models on many accelerators reach 0.3 to 0.5 (Chowdhery et al. 2022, table 3).
        bandwidth: share of the memory's bandwidth that decoding reaches.
        overhead: seconds a block and forward pass take at the least, whatever their size: the
            interpreter and the launch of some twenty kernels. Blocks of Llama and GPT-2 took 0.6 to
            1.2 ms on one busy core, at a width where the products themselves cost nothing.
    """

    utilisation: float = 0.35
    bandwidth: float = 0.6
    overhead: float = 0.6e-3

    def __post_init__(self) -> None:
        for name in ("utilisation", "bandwidth"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise UsageError(f"--{name} {value:g}: a share of the peak is above 0, 1 at most")


@dataclass
class Assumptions:
    """Given numbers, and what was assumed on the way.

    Attributes:
        given: stage -> quantity -> number, of `--assume`.
        sizes: reference -> parameters, of `--size`.
        rates: how much of the peak is reached.
        sentences: sentences on what was assumed, by stage.
    """

    given: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    rates: Rates = field(default_factory=Rates)
    sentences: dict[str, list[str]] = field(default_factory=dict)

    def get(self, stage: str, quantity: str) -> float | None:
        """Return what `--assume` gave, None without."""
        return self.given.get(stage, {}).get(quantity)

    def tell(self, stage: str, sentence: str) -> None:
        """Note what was assumed for a stage, each once."""
        sentences = self.sentences.setdefault(stage, [])
        if sentence not in sentences:
            sentences.append(sentence)


def parse_number(text: str, *, option: str) -> float:
    """Read `42000`, `1e6`, `135M`, `7B`.

    Raises:
        UsageError: it is no number above 0.
    """
    parts = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-z]?)\s*", text.replace("_", "").lower())
    try:
        value = float(parts[1]) * _UNITS[parts[2]] if parts else 0.0
    except (KeyError, ValueError):
        value = 0.0
    if value <= 0:
        raise UsageError(f"{option}: {text!r} is no number above 0; write 42000, 135M or 7B")
    return value


def parse_assumed(texts: Iterable[str], *, stages: Iterable[str]) -> dict[str, dict[str, float]]:
    """Read `--assume STAGE.QUANTITY=NUMBER`.

    Raises:
        UsageError: no such stage or quantity; names the nearest.
    """
    known = list(stages)
    given: dict[str, dict[str, float]] = {}
    for text in texts:
        option = f"--assume {text}"
        place, equals, number = text.partition("=")
        stage, dot, quantity = place.partition(".")
        if not equals or not dot:
            raise UsageError(f"{option}: write it as stage.quantity=number")
        if stage not in known:
            raise UsageError(
                f"{option}: the recipe has no stage '{stage}'; it has {', '.join(known)}."
                f"{nearest(stage, known)}"
            )
        if quantity not in QUANTITIES:
            listed = ", ".join(QUANTITIES)
            raise UsageError(
                f"{option}: '{quantity}' is none of {listed}.{nearest(quantity, QUANTITIES)}"
            )
        given.setdefault(stage, {})[quantity] = parse_number(number, option=option)
    return given


def parse_sizes(texts: Iterable[str]) -> dict[str, float]:
    """Read `--size CHECKPOINT=PARAMETERS`.

    Raises:
        UsageError: it is not written so.
    """
    sizes: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--size {text}: write it as checkpoint=135M")
        sizes[name] = parse_number(number, option=f"--size {text}")
    return sizes
