"""A kind of stage, as the runner sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.contract.context import StageContext
    from pipeline.contract.handover import HandOver
from pipeline.contract.settings import StageSettings


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: its settings and what it does.

    Attributes:
        name: value of `kind` in a recipe.
        settings: its settings model.
        run: does the work in `context.folder` and returns the final metrics.
        check: refuses stages that do not fit each other; called before anything is loaded.
        provides: what later stages may refer to it for.
        main_metric: key of the final metric that `rlhf ls` shows.
        version: raised when the code changes what the same settings give.
        seeded: whether its result hangs on the seed.
        trains: whether it keeps resume states and may be launched on many processes.
    """

    name: str
    settings: type[StageSettings]
    run: Callable[[StageContext[Any]], dict[str, Any]]
    check: Callable[[Any, HandOver], None]
    provides: frozenset[str]
    main_metric: str
    version: int = 1
    seeded: bool = True
    trains: bool = True
