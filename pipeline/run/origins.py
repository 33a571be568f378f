"""What checkpoints of finished stages were made of, as the recipes of their runs tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.errors import RlhfError
from pipeline.contract.artifacts import MANIFEST
from pipeline.contract.handover import HandOver, local_checkpoint
from pipeline.evaluation.judge.overlap import OF_TEXT
from pipeline.evaluation.judge.workspace import checkpoint_content
from pipeline.recipe.load import load_recipe
from pipeline.run.planning import Planner
from pipeline.run.runner import RESOLVED
from pipeline.stages.evaluate.readings import (
    made_elsewhere,
    readings,
    same_checkpoint,
    trained_against,
)

if TYPE_CHECKING:
    from pipeline.evaluation.judge.overlap import Reading


class Origins(NamedTuple):
    """What is known of how some checkpoints came to be.

    Attributes:
        readings: what each stage read, by its name, with that of its run where there are several.
        made_by: the stages of each checkpoint that read prompts.
        elsewhere: checkpoints of which nothing is known, and those that others began from.
        hands: the view of each checkpoint's stage in its run; None where nothing is known.
    """

    readings: dict[str, Reading]
    made_by: dict[str, list[str]]
    elsewhere: list[str]
    hands: dict[str, HandOver | None]

    def paid_by(self, place: str) -> list[str] | None:
        """Return the stages that made these checkpoints and were paid by a reward model.

        None where it is not known whether there is such a stage.
        """
        content, is_ours = checkpoint_content(place), (Path(place).parent / MANIFEST).is_file()
        found = [
            hand
            and trained_against(same_checkpoint(content, hand), [hand.name], hand, is_ours=is_ours)
            for hand in self.hands.values()
        ]
        stages = list(dict.fromkeys(stage for known in found for stage in known or ()))
        return None if None in found and not stages else stages


def origins(checkpoints: Mapping[str, str]) -> Origins:
    """Return how checkpoints, name -> place, came to be.

    That of a stage which is out of date is not known: its recipe is another by now.
    """
    made = {name: _made(place) for name, place in checkpoints.items()}
    runs = {one.run for one in made.values() if one is not None}
    hands = {name: one and one.hand for name, one in made.items()}
    found = Origins({}, {}, [], hands)
    for name, one in made.items():
        if one is None:
            found.elsewhere.append(name)
            continue
        prefix = "" if len(runs) == 1 else f"{one.run}/"
        read = {f"{prefix}{k}": what for k, what in readings(one.hand, one.seed).items()}
        found.readings.update(read)
        found.made_by[name] = [stage for stage, what in read.items() if what.kind not in OF_TEXT]
        found.elsewhere.extend(made_elsewhere(one.hand))
    return found._replace(elsewhere=list(dict.fromkeys(found.elsewhere)))


class _Made(NamedTuple):
    run: Path
    hand: HandOver
    seed: Callable[[str], int]


def _made(place: str) -> _Made | None:
    """Return the view of a stage in its run; None where it is no stage, or out of date."""
    model = local_checkpoint(place)
    if model is None:
        return None
    folder = model.parent if model.name == "model" else model
    run, stage = folder.parent, folder.name
    if not (folder / MANIFEST).is_file() or not (run / RESOLVED).is_file():
        return None
    try:
        recipe = load_recipe(run / RESOLVED)
        planner = Planner(recipe, run)
        planner.plan()
    except RlhfError:  # a source that is gone, or a plugin that isn't loaded
        return None
    if stage not in recipe.stages or stage in planner.stale:
        return None
    return _Made(run, planner.hand_over(stage), recipe.seed)
