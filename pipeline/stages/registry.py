"""The kinds of stages; a module is imported only when a recipe names its kind."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from data.errors import RecipeError, nearest
from pipeline.contract.kind import StageKind

STAGE_MODULES: Mapping[str, str] = {
    "tokenizer": "pipeline.stages.tokenizer.stage",
    "pretrain": "pipeline.stages.pretrain.stage",
    "distill": "pipeline.stages.distill.stage",
    "tool_annotate": "pipeline.stages.tool_annotate.stage",
    "finetune": "pipeline.stages.finetune.stage",
    "sft": "pipeline.stages.sft.stage",
    "rankings": "pipeline.stages.rankings.stage",
    "reward": "pipeline.stages.reward.stage",
    "select": "pipeline.stages.select.stage",
    "dpo": "pipeline.stages.dpo.stage",
    "kto": "pipeline.stages.kto.stage",
    "grpo": "pipeline.stages.grpo.stage",
    "rloo": "pipeline.stages.rloo.stage",
    "ppo": "pipeline.stages.ppo.stage",
    "evaluate": "pipeline.stages.evaluate.stage",
}


def stage_kind(name: str) -> StageKind:
    """Return the kind of stage with this name.

    Raises:
        RecipeError: no such kind.
    """
    if name not in STAGE_MODULES:
        known = ", ".join(STAGE_MODULES)
        raise RecipeError(f"unknown kind '{name}'; known: {known}.{nearest(name, STAGE_MODULES)}")
    kind = importlib.import_module(STAGE_MODULES[name]).KIND
    assert isinstance(kind, StageKind)
    return kind
