"""`rlhf run --seeds`: a recipe once a seed, early stages shared, and their figures side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import UsageError
from pipeline.recipe.load import Recipe
from pipeline.run.planning import Selection

_MOST = 100


class Turn(NamedTuple):
    """A run that is to be carried out: recipe, folder, which stages, and whose stages it reuses."""

    recipe: Recipe
    folder: Path
    selection: Selection
    reuse: Sequence[Path]


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that `0-4` or `0,3,7` names.

    Raises:
        UsageError: it names none, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part)
        if found is None:
            raise UsageError(f"--seeds {text}: '{part}' names no seeds; write 0-4 or 0,3,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 0 <= last - first < _MOST:
            raise UsageError(f"--seeds {text}: {part} is no range of at most {_MOST} seeds")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def turns(
    load: Callable[[list[str]], Recipe],
    seeds: str,
    *,
    out: Path | None,
    start: str | None,
    until: str | None,
    reuse: Sequence[Path],
) -> list[Turn]:
    """Return the runs of a recipe, one a seed.

    Stages before `start` have the first seed in every run, and so do those that draw nothing: what
    the first run leaves of them is taken over by the others.

    Args:
        load: the recipe with further changes, as `--set` has them.
        seeds: of the runs, as `parse_seeds` reads them.
        out: folder that holds a run folder a seed; `runs/<recipe>_seeds` when not given.
        start: first stage that differs by the seed.
        until: last stage.
        reuse: folders of other runs, whose stages of equal keys are taken over.
    """
    numbers = parse_seeds(seeds)
    first = load([f"seed={numbers[0]}"])
    Selection(start=start, until=until).stages(first)  # refuses names that there are not
    order = list(first.stages)
    early = order[: order.index(start)] if start else []
    shared = [stage for stage in order if stage in early or not first.kind(stage).seeded]
    folder = out or Path("runs") / f"{first.name}_seeds"
    runs = [folder / str(number) for number in numbers]
    return [
        Turn(
            _seeded(load, number, {stage: first.seed(stage) for stage in shared}),
            run,
            Selection(until=until),
            [*reuse, *(runs[:1] if run != runs[0] else ())],
        )
        for number, run in zip(numbers, runs, strict=True)
    ]


def _seeded(load: Callable[[list[str]], Recipe], number: int, kept: Mapping[str, int]) -> Recipe:
    """Return the recipe with a seed, of which some stages have one of their own."""
    own, changes = load([f"seed={number}"]), [f"seed={number}", *_seeds(kept)]
    recipe = load(changes)
    # The stages of later rounds are copies of the first one's, with what was said of that.
    copied = {
        stage: own.seed(stage)
        for stage in recipe.stages
        if stage not in kept and recipe.seed(stage) != own.seed(stage)
    }
    return load([*changes, *_seeds(copied)]) if copied else recipe


def _seeds(stages: Mapping[str, int]) -> list[str]:
    return [f"stages.{stage}.seed={seed}" for stage, seed in stages.items()]


def same_stages(recipe: Recipe, first: Recipe) -> set[str]:
    """Return the stages of a recipe that follow from the same as those of the first run's."""
    same: set[str] = set()
    for stage, settings in recipe.stages.items():
        alike = settings.key_settings() == first.stages[stage].key_settings()
        if alike and recipe.seed(stage) == first.seed(stage) and same >= {*recipe.parents(stage)}:
            same.add(stage)
    return same


def report_seeds(runs: Sequence[Turn]) -> Path:
    """Write the page of runs that differ by their seed beside their folders; return its path."""
    from pipeline.evaluation.report.side_by_side import write_side_by_side

    folders = {str(turn.recipe.top.seed): turn.folder for turn in runs}
    return write_side_by_side(runs[0].folder.parent, folders, seeds=True)
