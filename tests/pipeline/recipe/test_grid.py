"""Grids of runs: what becomes of one, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.errors import RecipeError
from pipeline.recipe.grid import (
    GridSettings,
    grid_recipe,
    load_grid,
    rates_at_an_end,
    rates_by_size,
    run_stages,
    sweep_stages,
)

GRID = """
tokenizer: {train: [{world: corpus, limit: 50}], vocab_size: 300}
pretrain: {train: [{world: corpus}], heldout: [{world: corpus_heldout}], context_length: 32}
sizes: [{hidden_size: 16}, {hidden_size: 32}, {hidden_size: 64}]
tokens: [1000, 2000, 4000]
learning_rates: [1e-3, 2e-3, 8e-3]
sweep_tokens: 1500
"""


PATH = Path("mine.yaml")


def loaded(folder: Path, text: str) -> GridSettings:
    path = folder / PATH
    path.write_text(text)
    return load_grid(str(path))[1]


def test_a_grid_becomes_a_recipe_of_each_size_for_each_length(tmp_path: Path) -> None:
    grid = loaded(tmp_path, GRID)
    stages: Any = grid_recipe(PATH, grid, [1e-3, 2e-3, 3e-3]).stages
    assert list(stages) == [
        "tokenizer",
        *(f"rate{size}-{rate}" for size in (0, 1) for rate in range(3)),
        *(f"run{size}-{length}" for size in range(3) for length in range(3)),
    ]
    run, swept = stages["run2-1"], stages["rate1-2"]
    assert (run.hidden_size, run.tokens, run.learning_rate) == (64, 2000, 3e-3)
    assert (swept.hidden_size, swept.tokens, swept.learning_rate) == (32, 1500, 8e-3)
    assert list(grid_recipe(PATH, grid, None).stages)[-1] == "rate1-2"


def test_a_setting_that_no_stage_has_is_told_with_the_file(tmp_path: Path) -> None:
    grid = loaded(tmp_path, GRID.replace("context_length", "context_lenght"))
    message = r"mine\.yaml: stages\.rate0-0\.context_lenght: unknown key .*'context_length'"
    with pytest.raises(RecipeError, match=message):
        grid_recipe(PATH, grid, None)


def test_the_grid_that_comes_with_the_package_is_a_valid_recipe() -> None:
    path, grid = load_grid("world")
    recipe = grid_recipe(path, grid, [1e-3] * len(grid.sizes))
    assert recipe.name == "scaling-world"
    assert len(recipe.stages) == 1 + len(sweep_stages(grid)) + len(run_stages(grid)) == 27
    assert max(grid.tokens) == 10 * min(grid.tokens)


def test_rates_are_a_power_of_the_size_through_the_best_two(tmp_path: Path) -> None:
    grid = loaded(tmp_path, GRID)
    losses = {stage: 3.0 for stage in sweep_stages(grid)} | {"rate0-2": 2.0, "rate1-1": 2.0}
    # 8e-3 at 1,000 and 2e-3 at 4,000: a rate falls with the size; 5e-4 at 16,000 was not tried.
    assert rates_by_size(grid, losses, [1000, 4000, 16_000]) == [8e-3, 2e-3, 1e-3]
    assert rates_by_size(grid, losses, [1000, 4000, 5657]) == [8e-3, 2e-3, 1.41e-3]
    assert rates_at_an_end(grid, losses) == [
        "size 0: the best learning rate, 0.008, is the largest that was tried; try others beyond it"
    ]


def test_one_rate_is_not_swept(tmp_path: Path) -> None:
    grid = loaded(tmp_path, GRID.replace("[1e-3, 2e-3, 8e-3]", "[3e-3]"))
    assert sweep_stages(grid) == {}
    assert rates_by_size(grid, {}, [1.0, 2.0, 3.0]) == [3e-3] * 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[1000, 2000, 4000]",
            "[1000, 2000]",
            r"mine\.yaml:5: tokens: \[1000, 2000\]: .* needs 3 of them",
        ),
        ("[1000, 2000, 4000]", "[1000, 2000, 1000]", r"tokens: .*one of them stands twice"),
        ("sweep_tokens", "sweep_token", r"sweep_token: unknown key .*'sweep_tokens'"),
        ("heldout: [{world: corpus_heldout}], ", "", r"pretrain needs `heldout` text"),
        ("[1000, 2000, 4000]", f"{list(range(1, 40))}", r"124 stages, at most 100"),
        ("[1e-3, 2e-3, 8e-3]", "[0]", r"learning_rates\.0: 0: "),
        ("tokenizer:", "tokeniser:", r"tokeniser: unknown key .*'tokenizer'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        loaded(tmp_path, GRID.replace(old, new))


def test_an_unknown_grid_is_told_with_those_that_are_there() -> None:
    with pytest.raises(RecipeError, match=r"no grid 'word': .*are world. Did you mean 'world'\?"):
        load_grid("word")
