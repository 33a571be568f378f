"""The annotators of `people.annotators`, who label while the stage waits for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data.labels.records import Campaign
from pipeline.stages.rankings.people_settings import (
    GoldAnnotatorSettings,
    JudgeSettings,
    PeopleSettings,
    SimulatedPoolSettings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from data.labels.annotators.working import Judge
    from data.labels.store.database import Database
    from pipeline.contract.context import StageContext


class Workers:
    """Lets each annotator label in turn.

    Args:
        context: of the stage.
        database: where the campaign is.
        campaign: what is labelled.
    """

    def __init__(self, context: StageContext[Any], database: Database, campaign: Campaign) -> None:
        self.context, self.database, self.campaign = context, database, campaign
        self.judges = judges_of(
            context.settings.asked,
            world_seed=context.settings.prompts[0].world_seed,
            guidelines=campaign.guidelines,
            seed=context.seed,
            logs=context.folder.parent / "labels",
        )

    def turn(self, should_stop: Callable[[], bool], *, each: int = 8) -> int:
        """Let every annotator label a few tasks; return how many labels they gave.

        One whose budget is spent gives back what it has and works no more.

        Args:
            should_stop: asked before each task.
            each: tasks of one annotator.
        """
        from data.labels.annotators.calls import BudgetSpentError
        from data.labels.annotators.working import give_back, work_through

        given = 0
        for judge in [*self.judges]:
            try:
                given += work_through(
                    self.database, self.campaign, judge, should_stop=should_stop, limit=each
                )
            except BudgetSpentError as spent:
                self.context.say(f"annotator {judge.name} stops: {spent}")
                give_back(self.database, self.campaign, judge)
                self.judges.remove(judge)
        return given


def judges_of(
    asked: PeopleSettings, *, world_seed: int, guidelines: str, seed: int, logs: Path
) -> list[Judge]:
    """Return the annotators that settings name.

    Args:
        asked: the settings.
        world_seed: of the embedded world, for annotators that know it.
        guidelines: for annotators that read.
        seed: of their errors and tastes.
        logs: folder of the logs of judges' calls.
    """
    judges: list[Judge] = []
    for one in asked.annotators:
        if isinstance(one, GoldAnnotatorSettings):
            from data.labels.annotators.gold import GoldJudge

            judges.append(GoldJudge(world_seed=world_seed, noise=one.noise, seed=seed))
        elif isinstance(one, SimulatedPoolSettings):
            judges += _pool(one, world_seed, seed)
        else:
            judges.append(_model_judge(one, guidelines, logs))
    return judges


def _pool(one: SimulatedPoolSettings, world_seed: int, seed: int) -> list[Judge]:
    from data.labels.annotators.simulated import gold_quality, pool, score_quality

    quality = gold_quality(world_seed) if one.quality == "gold" else score_quality
    return [*pool(quality=quality, size=one.pool, flip=one.flip, seed=seed)]


def _model_judge(one: JudgeSettings, guidelines: str, logs: Path) -> Judge:
    from data.labels.annotators.model_judge import ModelJudge

    return ModelJudge(
        one.name,
        one.calls(logs / f"calls-{one.name}.jsonl"),
        guidelines=guidelines,
        temperature=one.temperature,
        max_answer_tokens=one.max_answer_tokens,
        concurrency=one.concurrency,
    )
