"""Checks of a whole recipe, before anything is loaded or started."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from data.errors import HandOverError, RlhfError, UsageError
from data.extras import RETRIEVAL, require_packages
from pipeline.contract.handover import HandOver
from pipeline.contract.retrieval import SearchSettings
from pipeline.contract.settings import LaunchSettings, references, walk
from pipeline.contract.trackers import require_installed
from pipeline.recipe.load import Recipe
from pipeline.run.launching import require_launchable, shards_weights
from pipeline.run.planning import Planner
from pipeline.stages.checks import require_texts
from pipeline.stages.evaluate.readings import judge_warnings, overlap_warning
from pipeline.stages.evaluate.settings import EvaluateSettings
from pipeline.stages.grpo.settings import GroupSettings
from pipeline.stages.grpo.stage import warnings as group_warnings
from pipeline.stages.ppo.checks import warnings as ppo_warnings
from pipeline.stages.ppo.settings import PpoSettings


def check_recipe(recipe: Recipe, run: Path, *, absent: Collection[str] = ()) -> list[str]:
    """Check a recipe and all its hand-overs without loading weights or starting anything.

    Finished stages in the run folder are looked at; checkpoints that are `absent` need not be here.
    Returns warnings, a line each.
    """
    planner = Planner(recipe, run)
    planner.plan()
    check_stages(planner, absent=absent)
    return [
        f"stage {stage}: {line}"
        for stage in recipe.stages
        for line in _warnings(recipe, planner.hand_over(stage))
    ]


def _warnings(recipe: Recipe, hand: HandOver) -> list[str]:
    """Return what does not stop a stage, and its reader had better know."""
    settings = recipe.stages[hand.name]
    if isinstance(settings, PpoSettings):
        return ppo_warnings(settings, hand)
    if isinstance(settings, GroupSettings):
        return group_warnings(settings, hand)
    if isinstance(settings, EvaluateSettings):
        line = overlap_warning(settings, hand, recipe.seed)
        told = judge_warnings(settings, hand, recipe.seed)
        return told if line is None else [line, *told]
    return []


def check_stages(
    planner: Planner, launch: LaunchSettings | None = None, *, absent: Collection[str] = ()
) -> None:
    """Check all hand-overs before any work starts.

    Args:
        planner: has planned the stages that are checked.
        launch: how they are started; as the recipe says when not given.
        absent: checkpoints that need not be here.

    Raises:
        HandOverError: two stages do not fit each other, or a stage not the way it is started.
        SourceError: a local source is not there, or its first rows are not what a stage takes.
        RecipeError: a reward function is in no `--plugin` file, or a tracker is not installed.
        UsageError: the launch file can't be used.
    """
    recipe = planner.recipe
    launch = launch or recipe.top.launch
    require_installed(recipe.top.trackers)
    try:
        require_launchable(launch)
    except UsageError as error:
        raise UsageError(f"{recipe.path}: {error}") from error
    for stage in planner.selected:
        try:
            _check_stage(planner, stage, launch, absent)
        except RlhfError as error:
            raise type(error)(_placed(recipe, stage, error)) from error


def _check_stage(
    planner: Planner, stage: str, launch: LaunchSettings, absent: Collection[str]
) -> None:
    settings, kind = planner.recipe.stages[stage], planner.recipe.kind(stage)
    planner.inputs(stage)  # sources and functions have to be there
    hand = planner.hand_over(stage, processes=launch.processes if kind.trains else 1)
    for place, (target, mark) in references(settings).items():
        if target not in absent:
            hand.require_present(target, mark.provides, place)
    for place, value, _, _ in walk(settings):
        if isinstance(value, SearchSettings):
            require_packages(*RETRIEVAL, extra="retrieval", what="search")
            require_texts(hand, f"{place}.corpus", value.corpus)
    kind.check(settings, hand)
    if getattr(settings, "lora", None) is not None and shards_weights(launch):
        raise HandOverError(
            f"stage {stage}: its adapters (`lora`) need one whole model a process, and "
            f"launch.config {launch.config} shards the weights; use recipes/launch/ddp.yaml, "
            "or train without adapters"
        )


def _placed(recipe: Recipe, stage: str, error: RlhfError) -> str:
    """Return an error's sentence with the recipe and the stage, where they are not named yet."""
    text = str(error)
    if f"stage {stage}" not in text and f"stages.{stage}" not in text:
        text = f"stage {stage}: {text}"
    return text if text.startswith(str(recipe.path)) else f"{recipe.path}: {text}"
