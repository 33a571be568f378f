"""Grids of `rlhf scaling run`: small YAML files that become recipes of many pretrain stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from pipeline.contract.settings import PositiveInt, PositiveNumber, Seed, Settings
from pipeline.evaluation.scaling.points import LEAST_DISTINCT
from pipeline.recipe.load import MOST_STAGES, Recipe, recipe_of
from pipeline.recipe.named import load_named

FOLDER = "scaling/"


class GridSettings(Settings):
    """Runs of each size for each number of tokens, after a small sweep of learning rates."""

    description: str = ""
    """One line for who reads it."""
    seed: Seed = 0
    """Seed of every run."""
    tokenizer: dict[str, Any]
    """Settings of the tokenizer stage."""
    pretrain: dict[str, Any]
    """Settings that all runs have of the pretrain stage: text, held-out text, batch size ..."""
    sizes: tuple[dict[str, Any], ...]
    """Of a pretrain stage, smallest first: hidden_size, layers, heads and the like."""
    tokens: tuple[PositiveInt, ...]
    """Tokens that each size learns, each in a run of its own with its own schedule."""
    learning_rates: Annotated[tuple[PositiveNumber, ...], Field(min_length=1)]
    """Peak rates that are tried at the smallest and the middle size."""
    sweep_tokens: PositiveInt
    """Tokens of a run that tries a learning rate."""

    @field_validator("sizes", "tokens", "learning_rates")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(value in values[:place] for place, value in enumerate(values)):
            raise ValueError("one of them stands twice; a point that is there twice tells nothing")
        return values

    @field_validator("sizes", "tokens")
    @classmethod
    def _enough(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(values) < LEAST_DISTINCT:
            raise ValueError(f"a law with a floor needs {LEAST_DISTINCT} of them")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> GridSettings:
        if not self.pretrain.get("heldout") and not self.pretrain.get("heldout_share"):
            raise ValueError("pretrain needs `heldout` text, which the loss is measured on")
        stages = 1 + len(self.sizes) * len(self.tokens) + 2 * len(self.learning_rates)
        if stages > MOST_STAGES:
            raise ValueError(f"{stages} stages, at most {MOST_STAGES} make a run; take fewer")
        return self

    @property
    def swept(self) -> list[int]:
        """Which sizes the learning rates are tried at; none where there is but one rate."""
        return [0, len(self.sizes) // 2] if len(self.learning_rates) > 1 else []


def load_grid(name: str) -> tuple[Path, GridSettings]:
    """Return a grid's file, one of the user's or of the package, and its settings.

    Raises:
        RecipeError: there is no such grid, or something in it is wrong; names file and line.
    """
    return load_named(GridSettings, name, folder=FOLDER, what="grid")


def sweep_stages(grid: GridSettings) -> dict[str, tuple[int, float]]:
    """Return the size and the learning rate of each stage that tries one."""
    return {
        f"rate{size}-{place}": (size, rate)
        for size in grid.swept
        for place, rate in enumerate(grid.learning_rates)
    }


def run_stages(grid: GridSettings) -> dict[str, tuple[int, int]]:
    """Return the size and the tokens of each stage that is a point of the law."""
    return {
        f"run{size}-{place}": (size, tokens)
        for size in range(len(grid.sizes))
        for place, tokens in enumerate(grid.tokens)
    }


def grid_recipe(path: Path, grid: GridSettings, rates: Sequence[float] | None) -> Recipe:
    """Return the recipe of a grid: of its sweep alone, or with a rate for each size of all.

    Raises:
        RecipeError: a setting of a stage is wrong.
    """
    stages: dict[str, Any] = {"tokenizer": {"kind": "tokenizer", **grid.tokenizer}}
    for stage, (size, rate) in sweep_stages(grid).items():
        stages[stage] = _pretrain(grid, size, grid.sweep_tokens, rate)
    if rates is not None:
        for stage, (size, tokens) in run_stages(grid).items():
            stages[stage] = _pretrain(grid, size, tokens, rates[size])
    top = {"name": f"scaling-{path.stem}", "description": grid.description, "seed": grid.seed}
    return recipe_of({**top, "stages": stages}, path)


def _pretrain(grid: GridSettings, size: int, tokens: int, rate: float) -> dict[str, Any]:
    own = {"tokens": tokens, "learning_rate": rate, "evaluate_every": 0}
    return {
        "kind": "pretrain",
        "tokenizer": "tokenizer",
        **grid.pretrain,
        **grid.sizes[size],
        **own,
    }


def rates_at_an_end(grid: GridSettings, losses: Mapping[str, float]) -> list[str]:
    """Return a sentence for each size of the sweep whose best rate is the least or most tried."""
    least, most = min(grid.learning_rates), max(grid.learning_rates)
    return [
        f"size {size}: the best learning rate, {best:g}, is the "
        f"{'largest' if best == most else 'smallest'} that was tried; try others beyond it"
        for size, best in _best_rates(grid, losses).items()
        if best in (least, most)
    ]


def _best_rates(grid: GridSettings, losses: Mapping[str, float]) -> dict[int, float]:
    tried, best = sweep_stages(grid), {}
    for size in grid.swept:
        mine = [stage for stage, (swept, _) in tried.items() if swept == size]
        best[size] = tried[min(mine, key=lambda stage: losses[stage])][1]
    return best


def rates_by_size(
    grid: GridSettings, losses: Mapping[str, float], parameters: Sequence[float]
) -> list[float]:
    """Return a learning rate for each size: a power of the size through the best of the sweep.

    Args:
        grid: the grid.
        losses: held-out loss of each stage of the sweep.
        parameters: of each size.
    """
    if not grid.swept:
        return [grid.learning_rates[0]] * len(grid.sizes)
    best = [*_best_rates(grid, losses).values()]
    logs = np.log([parameters[size] for size in grid.swept])
    slope = (np.log(best[1]) - np.log(best[0])) / (logs[1] - logs[0])
    found = np.exp(np.log(best[0]) + slope * (np.log(parameters) - logs[0]))
    # No rate that was not tried: beyond the middle size the power is a guess.
    clipped = np.clip(found, min(grid.learning_rates), max(grid.learning_rates))
    return [float(f"{rate:.3g}") for rate in clipped]
