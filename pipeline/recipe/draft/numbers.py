"""Rates, batches and episodes of a first recipe, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.recipe.draft.text import Because

_POWER = 0.781
_POWERS = {"qwen": 0.0775}
_RULE = "times ({at:,} / {width:,}) ^ {power:g}, as Tinker's guide scales SFT by width"


class Rate(NamedTuple):
    """A learning rate that is known to do at a width; `least` is that of all wider ones too."""

    value: float
    width: int
    source: str
    least: bool = False


GIVEN: Mapping[str, Rate] = {
    "sft": Rate(5e-5, 2000, "Tinker's guide to SFT, of all weights: 5e-5 at a width of 2,000"),
    "reward": Rate(9e-6, 4096, "InstructGPT's reward model of 6B: 9e-6 at a width of 4,096"),
    "ppo": Rate(3e-6, 2048, "N+'s PPO of 1B to 6.9B: 3e-6 from a width of 2,048 on", least=True),
}
"""For models that were trained before."""
SMALL: Mapping[str, Rate] = {
    "pretrain": Rate(2e-3, 192, "The quickstart's pretraining: 2e-3 at a width of 192"),
    "sft": Rate(1.5e-3, 192, "The quickstart's SFT: 1.5e-3 at a width of 192"),
    "reward": Rate(5e-4, 192, "The quickstart's reward model: 5e-4 at a width of 192"),
    "ppo": Rate(1e-4, 192, "PPO of the recipe stories_sentiment: 1e-4 at a width of 192"),
}
"""For small models that are trained from nothing."""


def learning_rate(stage: str, *, width: int, family: str, scratch: bool) -> Because:
    """Return a learning rate by the width of a model, rounded to two digits."""
    known = (SMALL if scratch else GIVEN)[stage]
    power = next((p for name, p in _POWERS.items() if family.startswith(name)), _POWER)
    if width == known.width or (known.least and width > known.width):
        return Because(known.value, f"{known.source}.")
    rule = _RULE.format(at=known.width, width=width, power=power)
    rate = known.value * (known.width / width) ** power
    return Because(float(f"{rate:.1e}"), f"{known.source}; {rule}.")


def power_of_two(number: float, *, least: int, most: int) -> int:
    """Return the largest power of two that is no larger, between two others."""
    power = least
    while power * 2 <= min(number, most):
        power *= 2
    return power


PASSES = 8
"""Times that PPO answers a prompt; InstructGPT: 256,000 episodes of 31,000 prompts."""
MOST_EPISODES = 51_200
"""Of a first run."""
_UPDATES = 30
"""Updates that it has at least, where there are prompts enough for batches of 8."""


def episodes(prompts: int, share: str) -> tuple[Because, Because]:
    """Return the episodes of PPO and its batch, by the number of prompts."""
    wanted = PASSES * prompts
    count = min(wanted, MOST_EPISODES)
    batch = power_of_two(count / _UPDATES, least=8, most=512)
    count = max(batch, count // batch * batch)
    why = f"{share}{prompts:,} prompts, {PASSES} times each as InstructGPT's 31,000"
    if wanted > MOST_EPISODES:
        why += f", and no more than {MOST_EPISODES:,} in a first run"
    return Because(count, f"{why}."), Because(
        batch, f"N+ and InstructGPT have 512; of {count:,} episodes that leaves {count // batch} "
        "updates."
    )  # fmt: skip


def rows_batch(rows: int, *, usual: int, source: str) -> Because:
    """Return the rows of a step: the usual number where that leaves steps enough in a pass."""
    batch = power_of_two(rows / 25, least=4, most=usual)
    if batch == usual:
        return Because(batch, f"{source}.")
    return Because(batch, f"{source}; fewer, for {rows:,} rows make few steps.")
