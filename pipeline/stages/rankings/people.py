"""Stage `rankings` with `labeler: people`: tasks into the store, wait, rankings out.

What was sampled stands in `tasks.jsonl`; a campaign's name ends in a digest of it, so that other
completions make another campaign and nobody's answer is taken for one to another model's. Labels
are kept in the run's database, outside the stage's folder: the stage may be emptied, stopped and
run again, and finds them by that name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SourceError
from data.extras import FIGURES, STORE, require_packages
from data.json_lines import append_json_lines, read_json_lines
from data.labels.records import Campaign, CampaignSettings, LabelRow, NewTask
from data.records import ENDED, Ranking, prompt_hash, to_json
from data.storage import write_atomically
from pipeline.stages.asking import free_memory, opened_labels, wait_for_labels
from pipeline.stages.rankings.annotators import Workers
from pipeline.stages.rankings.people_settings import GOLD_TASKS
from pipeline.stages.rankings.sampling import (
    FILE,
    drawn,
    make_sampler,
    read_counts,
    require_prompts,
    sample,
    sampling_metrics,
    save_counts,
    summarise,
)
from pipeline.stages.reward.rows import referred_rankings

if TYPE_CHECKING:
    from data.labels.store.database import Database
    from pipeline.contract.context import StageContext
    from pipeline.stages.rankings.labelers import Unranked
    from pipeline.stages.rankings.settings import RankingsSettings

TASKS = "tasks.jsonl"
SCORES = "scores.jsonl"
_SAMPLED = "whole"
"""In the counts of a resume state: all prompts are sampled."""


def ask_people(context: StageContext[RankingsSettings]) -> dict[str, Any]:
    """Sample, store the tasks, wait for labels, write the rankings; return the metrics.

    Raises:
        Interrupted: a signal asked to stop; tasks and labels are kept.
        UsageError: packages are missing, or the database can't be opened.
    """
    require_packages(*STORE, *FIGURES)
    counts = _sampled(context)
    tasks = [*read_tasks(context.folder / TASKS)]
    require_prompts(context, len(tasks))
    tasks = _scored(context, tasks)
    asked = context.settings.asked
    with opened_labels(context, asked) as database:
        campaign = _campaign(context, database, tasks)
        workers = Workers(context, database, campaign)
        progress = wait_for_labels(
            context, asked, database, campaign, work=lambda: workers.turn(context.should_stop)
        )
        labels, rankings = write_rankings(context, database, campaign)
    metrics = summarise(rankings)
    return {
        **metrics,
        "n_prompts": len({row.assignment.task.id for row in labels}),
        "n_rankings": metrics["n_prompts"],
        "n_tasks": progress.tasks,
        "n_labels": len(labels),
        "n_annotators": len({row.annotator.id for row in labels}),
        "campaign": campaign.name,
        **sampling_metrics(counts),
    }


def _sampled(context: StageContext[RankingsSettings]) -> Counter[str]:
    """Sample what is not sampled yet, and return the counts; the model is gone afterwards."""
    path = context.folder / TASKS
    context.resume.track(path)
    latest = context.resume.latest()
    if latest is not None:
        counts = read_counts(latest[1])
        if counts[_SAMPLED]:
            return counts
    sampler = make_sampler(context)
    model_name = str(context.settings.model)
    chunks = sample(
        context, sampler, path, lambda items: (_task_row(item, model_name) for item in items)
    )
    counts = sampler.counts
    counts[_SAMPLED] = 1
    save_counts(context, chunks, counts)
    del sampler
    free_memory()
    return counts


def _task_row(item: Unranked, model: str) -> dict[str, Any]:
    return {
        "key": hashlib.sha256(
            json.dumps([prompt_hash(item.prompt), item.completions]).encode()
        ).hexdigest()[:32],
        "prompt": item.prompt,
        "completions": item.completions,
        "policies": [model] * len(item.completions),
        "meta": {**item.meta, ENDED: item.ended, "id": item.id},
    }


def read_tasks(path: Path) -> Iterator[NewTask]:
    """Yield the tasks of a `tasks.jsonl`."""
    return (NewTask(**row) for row in read_json_lines(path))


def _scored(context: StageContext[RankingsSettings], tasks: list[NewTask]) -> list[NewTask]:
    """Return the tasks with the scores of the reward models of `people.scored_by`."""
    sources = context.settings.asked.scored_by
    if not sources:
        return tasks
    path = context.folder / SCORES
    if path.is_file():
        rows = [*read_json_lines(path, of=list)]
    else:
        from reward.learned.model import RewardModel

        prompts = [task.prompt for task in tasks for _ in task.completions]
        texts = [text for task in tasks for text in task.completions]
        ended = [end for task in tasks for end in task.meta[ENDED]]
        columns = []
        for place, name in enumerate(sources):
            model = RewardModel.load(
                context.input(f"people.scored_by.{place}"),
                batch_size=context.settings.batch_size,
                trust_remote_code=context.settings.trust_remote_code,
            )
            with context.progress(len(texts), f"scoring by {name}", unit="texts") as bar:
                columns.append(iter(model.score(prompts, texts, ended=ended, advance=bar.advance)))
            del model
            context.stop_if_asked()
        rows = [[[next(column) for _ in task.completions] for column in columns] for task in tasks]
        write_atomically(path, (json.dumps(row) + "\n" for row in rows))
        free_memory()
    return [dataclasses.replace(task, scores=row) for task, row in zip(tasks, rows, strict=True)]


def _campaign(
    context: StageContext[RankingsSettings], database: Database, tasks: Sequence[NewTask]
) -> Campaign:
    """Store the campaign and its tasks, or find them."""
    from data.labels.campaign.campaigns import Campaigns

    asked, campaigns = context.settings.asked, Campaigns(database)
    gold = _gold_tasks(context)
    name = f"{asked.campaign or context.name}-{_digest(context, [*tasks, *gold])}"
    settings = CampaignSettings(
        mode=asked.mode,
        strategy=asked.strategy,
        overlap=asked.overlap,
        annotators_per_task=asked.annotators_per_task,
        gold_share=asked.gold_share,
        repeat_share=asked.repeat_share,
        qualification_tasks=asked.qualification_tasks,
        qualification_share=asked.qualification_share,
        lease_seconds=60 * asked.lease_minutes,
        seed=context.seed,
    )
    known = campaigns.get(name)
    if known is not None and known.settings.lease_seconds != settings.lease_seconds:
        minutes = known.settings.lease_seconds / 60
        context.say(f"campaign {name} keeps the {minutes:g} lease_minutes it was begun with")
        settings = dataclasses.replace(settings, lease_seconds=known.settings.lease_seconds)
    campaign = campaigns.create(
        name,
        settings,
        asked.read_guidelines(),
        by=f"stage {context.name}",
        title=asked.title or "",
    )
    campaigns.add_tasks(campaign.id, [*tasks, *gold])
    return campaign


def _digest(context: StageContext[RankingsSettings], tasks: Sequence[NewTask]) -> str:
    """Return what tells this set of tasks, asked in this way, from any other."""
    content = [context.settings.asked.mode, context.seed]
    text = json.dumps([content, *([task.key, task.gold_ranks] for task in tasks)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _gold_tasks(context: StageContext[RankingsSettings]) -> list[NewTask]:
    """Return the tasks whose ranks are known, those without an order left out.

    Raises:
        SourceError: there are fewer than the qualification takes, or of another size.
    """
    asked = context.settings.asked
    if asked.gold is None:
        return []
    tasks = {}
    for ranking in referred_rankings(context, "people.gold"):
        if len(set(ranking.ranks)) > 1 and 2 <= len(ranking.completions) <= 9:
            task = _gold_task(ranking)
            tasks[task.key] = task
    if asked.mode == "pairs":
        tasks = {key: task for key, task in tasks.items() if len(task.completions) == 2}
    chosen = drawn([*tasks.values()], GOLD_TASKS, context.seed)
    if len(chosen) < max(1, asked.qualification_tasks):
        raise SourceError(
            f"stage {context.name}: people.gold holds {len(chosen)} rankings that can be asked, "
            f"{max(1, asked.qualification_tasks)} are needed: rankings of 2 to 9 completions "
            "(pairs: 2) that do not all tie"
        )
    return chosen


def _gold_task(ranking: Ranking) -> NewTask:
    content = json.dumps(["gold", prompt_hash(ranking.prompt), ranking.completions])
    return NewTask(
        key=hashlib.sha256(content.encode()).hexdigest()[:32],
        prompt=ranking.prompt,
        completions=list(ranking.completions),
        policies=list(ranking.policies),
        gold_ranks=list(ranking.ranks),
        gold_note=str(ranking.meta.get("note", "")),
        meta={**ranking.meta, **({ENDED: ranking.ended} if ranking.ended else {})},
    )


def write_rankings(
    context: StageContext[RankingsSettings], database: Database, campaign: Campaign
) -> tuple[list[LabelRow], list[Ranking]]:
    """Write `rankings.jsonl`; return the labels and the rankings that they make.

    Raises:
        SourceError: there are no labels.
    """
    from data.labels.campaign.label_filter import labels_of
    from data.labels.campaign.submissions import Submissions
    from data.labels.exchange.exporting import rankings_of

    labels = labels_of(Submissions(database).labels(campaign.id))
    if not labels:
        raise SourceError(
            f"stage {context.name}: campaign {campaign.name} was closed without a label"
        )
    rankings = rankings_of(labels, consolidation=context.settings.asked.consolidation)
    path = context.folder / FILE
    path.unlink(missing_ok=True)
    append_json_lines(path, map(to_json, rankings))
    return labels, rankings
