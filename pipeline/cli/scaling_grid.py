"""Runs a grid of pretrain stages and fits a law to them: the body of `rlhf scaling run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from data.json_lines import write_json_lines
from data.records import to_text
from data.sources.read import read
from data.sources.split import is_heldout_text
from data.sources.values import plain
from data.storage import write_atomically
from pipeline.evaluation.report.collect import read_metrics
from pipeline.evaluation.scaling.fit import fit_report
from pipeline.evaluation.scaling.measure import heldout_loss, model_counts, training_seconds
from pipeline.evaluation.scaling.page import scaling_page
from pipeline.evaluation.scaling.plan import compute_factor, speed
from pipeline.evaluation.scaling.points import read_points
from pipeline.recipe.grid import (
    grid_recipe,
    rates_at_an_end,
    rates_by_size,
    run_stages,
    sweep_stages,
)
from pipeline.run.planning import Planner
from pipeline.run.runner import execute, plan

if TYPE_CHECKING:
    from pipeline.contract.artifacts import Artifact
    from pipeline.contract.console import Console
    from pipeline.recipe.grid import GridSettings
    from pipeline.recipe.load import Recipe
    from pipeline.stages.pretrain.settings import PretrainSettings

POINTS, FIT, PAGE = "points.jsonl", "fit.json", "index.html"
HELDOUT_TEXTS = 500
"""Held-out texts that every run is judged on, at most."""


def run_grid(
    path: Path, grid: GridSettings, out: Path | None, *, resamples: int, console: Console
) -> tuple[Path, dict[str, Any]]:
    """Run a grid, or what is missing of it, and return its folder and the fit of its points.

    Args:
        path: file of the grid.
        grid: what it says.
        out: run folder; `runs/scaling-NAME` when not given.
        resamples: refits for the intervals.
        console: where it speaks.

    Raises:
        Interrupted: a signal asked to stop; what was done is saved, and the same call goes on.
        RlhfError: a setting of the grid is wrong, or a run fails.
    """
    # All of it is checked at once, before its rates are known.
    whole = grid_recipe(path, grid, [grid.learning_rates[0]] * len(grid.sizes))
    folder = out or Path("runs") / whole.name
    losses: dict[str, float] = {}
    if grid.swept:
        sweep = Planner(grid_recipe(path, grid, None), folder)
        # Where it is done, the report of the whole grid stays as it is.
        done = all(step.action == "up to date" for step in plan(sweep))
        tried = sweep.artifacts() if done else execute(sweep.recipe, folder, console=console)[0]
        losses = {stage: tried[stage].metrics["eval/loss"] for stage in sweep_stages(grid)}
        for sentence in rates_at_an_end(grid, losses):
            console.say(sentence)
    rates = rates_by_size(
        grid, losses, [_block_size(whole, size) for size in range(len(grid.sizes))]
    )
    recipe = grid_recipe(path, grid, rates)
    artifacts = execute(recipe, folder, console=console).artifacts
    texts = _heldout_texts(_pretrain(recipe, "run0-0"))
    rows = []
    for stage in run_stages(grid):
        console.say(f"{stage}: loss on {len(texts)} held-out texts")
        rows.append(_point(artifacts[stage], _pretrain(recipe, stage), texts))
    write_json_lines(folder / POINTS, rows)
    return folder, _fitted(folder, grid, rows, resamples=resamples)


def _pretrain(recipe: Recipe, stage: str) -> PretrainSettings:
    return cast("PretrainSettings", recipe.stages[stage])


def _block_size(recipe: Recipe, size: int) -> float:
    """Return about how many parameters the blocks of a size have (Kaplan et al. 2020, table 1)."""
    settings = _pretrain(recipe, f"run{size}-0")
    return 12.0 * settings.layers * settings.hidden_size**2


def _heldout_texts(settings: PretrainSettings) -> list[str]:
    """Return the held-out texts of the runs, of which they learned none."""
    share = 0.0 if settings.heldout else settings.heldout_share
    sources = settings.heldout or settings.train
    texts = map(to_text, chain.from_iterable(read(one.source()) for one in sources))
    held = (text for text in texts if not share or is_heldout_text(text, share=share))
    return list(islice(held, HELDOUT_TEXTS))


def _point(artifact: Artifact, settings: PretrainSettings, texts: Sequence[str]) -> dict[str, Any]:
    model = artifact.folder / "model"
    counts = model_counts(model, context_length=settings.context_length)
    tokens, steps = artifact.metrics["tokens"], artifact.metrics["steps"]
    return {
        "run": artifact.name,
        "parameters": counts["parameters"],
        "non_embedding_parameters": counts["non_embedding_parameters"],
        "tokens": tokens,
        **heldout_loss(model, texts),
        "flops": counts["flops_per_token"] * tokens,
        "seconds": training_seconds(read_metrics(artifact.folder), step_tokens=tokens / steps),
        "learning_rate": settings.learning_rate,
    }


def _fitted(
    folder: Path, grid: GridSettings, rows: Sequence[dict[str, Any]], *, resamples: int
) -> dict[str, Any]:
    """Write the fit of the points and its page; return the fit."""
    points = read_points(str(folder / POINTS))
    _, report = fit_report(points, resamples=resamples, seed=grid.seed)
    factor = compute_factor(points)
    report["ignored_columns"] = []  # they are our own
    report["compute"] = {
        "C0": factor.value,
        "C0_ci95": factor.ci95,
        **speed(rows),
    }
    report = cast(dict[str, Any], plain(report))
    write_atomically(folder / FIT, json.dumps(report, indent=2) + "\n")
    title = grid.description or folder.name
    write_atomically(folder / PAGE, scaling_page(title, report, rows))
    return report
