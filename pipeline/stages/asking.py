"""A stage that asks people: it opens the run's labels, and waits until enough is said."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from data.errors import Interrupted
from data.labels.records import Campaign, Progress
from data.labels.web.address import read_address
from data.words import counted
from pipeline.stages.asking_settings import AskingSettings, database_place

if TYPE_CHECKING:
    from data.labels.store.database import Database
    from pipeline.contract.context import StageContext

TOLD_SECONDS = 60.0
"""Between two lines on how far the labels are."""
_NAP = 0.2
"""Seconds between two looks at the stop flag."""


@contextmanager
def opened_labels(context: StageContext[Any], asked: AskingSettings) -> Iterator[Database]:
    """Give the label database of a stage's run.

    Raises:
        UsageError: it can't be opened.
    """
    from data.labels.store.database import open_database

    run = context.folder.parent
    database = open_database(database_place(run, asked.database), home=run / "labels")
    for note in database.notes:
        context.say(note)
    try:
        yield database
    finally:
        database.close()


def free_memory() -> None:
    """Give back what models that are gone held: people take days, the accelerator is others'."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait_for_labels(
    context: StageContext[Any],
    asked: AskingSettings,
    database: Database,
    campaign: Campaign,
    *,
    work: Callable[[], int] = lambda: 0,
    needed: int | None = None,
    unit: str = "task",
    made: str = "",
) -> Progress:
    """Return once enough tasks have all their labels, or the campaign is closed.

    Args:
        context: of the stage.
        asked: how many are enough.
        database: where the campaign is.
        campaign: what is labelled.
        work: lets annotators that are no people label; returns how many labels they gave.
        needed: how many are enough, where it does not follow from the tasks there are.
        unit: what is labelled, for people to read.
        made: what the stage has done so far, where that is not to make tasks.

    Raises:
        Interrupted: a signal asked to stop, or the stage may not wait.
        StoreDownError: the database was deleted meanwhile.
    """
    from data.labels.campaign.campaigns import Campaigns

    campaigns = Campaigns(database)
    progress = campaigns.progress(campaign.id)
    if needed is None:
        needed = _needed(context, asked, progress.tasks)
    if progress.complete < needed and not context.stop.waits and not campaign.closed:
        made = made or f"has made the {counted(progress.tasks, 'task')} of campaign {campaign.name}"
        raise Interrupted(
            f"stage {context.name} {made}; {progress.complete} of {counted(needed, unit)} labelled"
        )
    told_at = -TOLD_SECONDS
    with context.progress(needed, "labelled", done=progress.complete, unit=f"{unit}s") as bar:
        seen = progress.complete
        while progress.complete < needed:
            if time.monotonic() - told_at >= TOLD_SECONDS:
                _tell(context, database, campaign, progress, counted(needed, unit))
                told_at = time.monotonic()
            worked = work()
            database.require_there()
            progress = campaigns.progress(campaign.id)
            bar.advance(progress.complete - seen)
            seen = progress.complete
            known = campaigns.by_id(campaign.id)
            if known is not None and known.closed:
                context.say(
                    f"campaign {campaign.name} is closed at {seen} of {counted(needed, unit)}"
                )
                break
            if seen < needed and not worked:
                _sleep(context, asked.poll_seconds)
            _stop_if_asked(context, progress, counted(needed, unit))
    return progress


def _needed(context: StageContext[Any], asked: AskingSettings, tasks: int) -> int:
    if asked.needed <= 1:
        return min(tasks, max(1, round(asked.needed * tasks)))
    if asked.needed > tasks:
        context.say(
            f"people.needed asks for {asked.needed:g} tasks, there are {tasks}: all are needed"
        )
    return min(int(asked.needed), tasks)


def _tell(
    context: StageContext[Any],
    database: Database,
    campaign: Campaign,
    progress: Progress,
    needed: str,
) -> None:
    from data.labels.campaign.submissions import Submissions

    run = context.folder.parent
    address = read_address(run)
    where = f"at {address}" if address else f"by `rlhf label serve {run}`"
    skips = Submissions(database).skipped_by(campaign.id)
    who = ", ".join(f"{count} by {name}" for name, count in skips.items())
    context.say(
        f"waiting for labels {where}: {progress.complete} of {needed}, "
        f"{counted(progress.labels, 'label')} by {counted(progress.annotators, 'annotator')} "
        f"(campaign {campaign.name}" + (f"; skipped: {who})" if skips else ")")
    )
    _tell_of_too_few(context, database, campaign, progress)


def _tell_of_too_few(
    context: StageContext[Any], database: Database, campaign: Campaign, progress: Progress
) -> None:
    """Tell where all that is left waits for more people than there are: it would wait for ever."""
    from data.labels.campaign.people import count_of

    with database.read() as connection:
        people = count_of(connection)
    wanted, left = campaign.settings.annotators_per_task, progress.tasks - progress.complete
    if progress.labelled == progress.tasks and left and 0 < people < wanted:
        context.say(
            f"{counted(left, 'task')} wait for people: {wanted} label each "
            f"(people.annotators_per_task), and {people} may; let in another by `rlhf label invite "
            f"{context.folder.parent} NAME`, or close the campaign to go on with what is there"
        )


def _sleep(context: StageContext[Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not context.should_stop():
        time.sleep(min(_NAP, left))


def _stop_if_asked(context: StageContext[Any], progress: Progress, needed: str) -> None:
    if context.should_stop():
        raise Interrupted(
            f"stage {context.name} stopped waiting at {progress.complete} of "
            f"{needed}, all labels are kept"
        )
