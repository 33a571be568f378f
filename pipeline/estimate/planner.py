"""Estimates a whole recipe, and what to change where a stage does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.errors import RecipeError, UsageError, nearest
from data.plain_yaml import parse
from data.small_files import read_file
from data.storage import expand
from pipeline.contract.settings import StageSettings
from pipeline.estimate.advice import Advice, advise
from pipeline.estimate.model.assumptions import Assumptions
from pipeline.estimate.model.checkpoints import Checkpoints
from pipeline.estimate.model.costs import Sharding, StageCost
from pipeline.estimate.model.estimator import Estimator
from pipeline.estimate.model.hardware import Cluster
from pipeline.estimate.model.sources import SECONDS, Reader
from pipeline.estimate.stages.annotating import estimate_tool_annotate
from pipeline.estimate.stages.finetune import estimate_finetune
from pipeline.estimate.stages.groups import estimate_groups
from pipeline.estimate.stages.ppo import estimate_ppo
from pipeline.estimate.stages.preference import estimate_preference
from pipeline.estimate.stages.reward_model import estimate_reward
from pipeline.estimate.stages.sampling import estimate_evaluate, estimate_rankings, estimate_select
from pipeline.estimate.stages.training import estimate_distill, estimate_pretrain, estimate_sft
from pipeline.recipe.shipped import find_file

if TYPE_CHECKING:
    from pipeline.recipe.load import Recipe

ESTIMATES: dict[str, Callable[[str, Any, Estimator], StageCost]] = {
    "pretrain": estimate_pretrain,
    "distill": estimate_distill,
    "tool_annotate": estimate_tool_annotate,
    "finetune": estimate_finetune,
    "sft": estimate_sft,
    "rankings": estimate_rankings,
    "reward": estimate_reward,
    "select": estimate_select,
    "dpo": estimate_preference,
    "kto": estimate_preference,
    "grpo": estimate_groups,
    "rloo": estimate_groups,
    "ppo": estimate_ppo,
    "evaluate": estimate_evaluate,
}
"""Kind of stage -> its estimate; others do nothing on an accelerator."""
_SHARDINGS = ("ddp", "fsdp2")


@dataclass(frozen=True)
class Verdict:
    """The estimate of a stage: its cost, whether it fits, and what makes it fit."""

    cost: StageCost
    fits: bool
    advice: list[Advice]
    assumed: list[str]


@dataclass(frozen=True)
class Plan:
    """The estimate of a recipe on a cluster; stages that use no accelerator are left out."""

    recipe: str
    cluster: Cluster
    assumed: Assumptions
    verdicts: list[Verdict]

    @property
    def hours(self) -> float:
        """Hours of all stages, one after the other."""
        return sum(verdict.cost.hours for verdict in self.verdicts)


def estimate_recipe(
    recipe: Recipe,
    cluster: Cluster,
    *,
    sharding: Sharding | None = None,
    assumed: Assumptions | None = None,
    seconds: float = SECONDS,
) -> Plan:
    """Return the estimate of every stage, without loading weights or starting anything.

    Args:
        recipe: the recipe.
        cluster: what it would run on.
        sharding: how trained models are spread; what the recipe's launch file says when None.
        assumed: given numbers and rates.
        seconds: after which a source is not read on.

    Raises:
        ModelError: the size of a model is unknown.
        SourceError: a local source can't be read.
    """
    assumed = assumed or Assumptions()
    estimator = Estimator(
        recipe=recipe,
        cluster=cluster,
        sharding=sharding or launched_sharding(recipe),
        assumed=assumed,
        checkpoints=Checkpoints(recipe, assumed),
        reader=Reader(assumed, seconds),
    )
    verdicts = [
        _verdict(stage, settings, estimator)
        for stage, settings in recipe.stages.items()
        if settings.kind in ESTIMATES
    ]
    return Plan(recipe.name, cluster, assumed, [v for v in verdicts if v.cost.parts])


def check_sharding(text: str | None) -> Sharding | None:
    """Return `--sharding` as it was given.

    Raises:
        UsageError: it is none of ddp and fsdp2.
    """
    if text is None:
        return None
    if text == "ddp":
        return "ddp"
    if text == "fsdp2":
        return "fsdp2"
    raise UsageError(f"--sharding {text}: known are ddp and fsdp2.{nearest(text, _SHARDINGS)}")


def launched_sharding(recipe: Recipe) -> Sharding:
    """Return how the accelerate file of the recipe's `launch.config` spreads models; DDP without.

    Raises:
        RecipeError: the file can't be read.
    """
    place = recipe.top.launch.config
    if place is None:
        return "ddp"
    try:
        content, _ = parse(read_file(find_file(expand(place))).decode(), lambda n: f"line {n}")
    except (OSError, ValueError) as error:
        raise RecipeError(f"launch.config: {place} can't be read ({error})") from error
    kind = str(content.get("distributed_type", "")).upper() if isinstance(content, dict) else ""
    return "fsdp2" if kind in ("FSDP", "DEEPSPEED") else "ddp"


def _verdict(stage: str, settings: StageSettings, estimator: Estimator) -> Verdict:
    cost = ESTIMATES[settings.kind](stage, settings, estimator)
    assumed = list(estimator.assumed.sentences.get(stage, []))
    fits = cost.fits(estimator.cluster)
    advice = [] if fits else advise(ESTIMATES[settings.kind], stage, settings, estimator, cost)
    return Verdict(cost, fits, advice, assumed)
