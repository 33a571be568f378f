"""What annotators that are no people share: claim a task, judge it, submit, until none is left."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from data.errors import LabelConflictError
from data.labels.campaign.accounts import Accounts
from data.labels.campaign.queue import Queue
from data.labels.campaign.submissions import Submissions
from data.labels.records import RATINGS, AnnotatorKind, Assignment, Campaign, Mode, Submission
from data.labels.store.database import Database


class Judge(Protocol):
    """Judges completions.

    Attributes:
        name: the annotator's, as exports tell it.
        kind: what it is.
    """

    name: str
    kind: AnnotatorKind

    def judge(self, assignment: Assignment, mode: Mode) -> Submission | None:
        """Return the label of a task, or None to skip it."""
        ...


def work_through(
    database: Database,
    campaign: Campaign,
    judge: Judge,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    limit: int | None = None,
) -> int:
    """Let an annotator label until nothing is left for it; return how many labels it gave.

    A task that is interrupted stays leased to the annotator, which finds it again.

    Args:
        database: where the campaign is.
        campaign: what is labelled.
        judge: the annotator.
        should_stop: asked before each task.
        limit: at most so many tasks; None for all.
    """
    queue, submissions = Queue(database), Submissions(database)
    annotator = Accounts(database).add(judge.name, judge.kind)
    done = met = 0
    while (limit is None or met < limit) and not should_stop():
        given = queue.next(annotator.id, campaign.id)
        if given is None:
            break
        met += 1
        started = time.monotonic()
        label = judge.judge(given, campaign.settings.mode)
        try:
            if label is None:
                submissions.skip(given.id, annotator.id, "broken")
                continue
            seconds = label.seconds or round(time.monotonic() - started, 3)
            label = dataclasses.replace(label, seconds=seconds)
            submissions.submit(given.id, annotator.id, label)
            done += 1
        except LabelConflictError:
            # It took longer than the lease, and somebody else has labelled the task meanwhile.
            continue
    return done


def give_back(database: Database, campaign: Campaign, judge: Judge) -> None:
    """Return the task that an annotator holds to the others; it will not label it."""
    queue = Queue(database)
    annotator = Accounts(database).add(judge.name, judge.kind)
    given = queue.next(annotator.id, campaign.id)
    if given is not None:
        queue.release(given.id, annotator.id)


def submission(
    assignment: Assignment,
    mode: Mode,
    ranks: Sequence[int],
    *,
    ratings: Sequence[int] = (),
    strength: int = 2,
) -> Submission:
    """Return a label as a campaign's mode asks it.

    Args:
        assignment: what is labelled; its id is the submission's key.
        mode: what is asked.
        ranks: dense, in the task's own order.
        ratings: of each completion; evenly spaced by rank where none are given.
        strength: of a pair that is no tie, 1 to 3.
    """
    return Submission(
        key=f"auto {assignment.id}",
        ranks=list(ranks),
        ratings=list(ratings or ratings_by_rank(ranks)) if mode == "rate_and_rank" else [],
        strength=(0 if len(set(ranks)) == 1 else strength) if mode == "pairs" else None,
    )


def ratings_by_rank(ranks: Sequence[int]) -> list[int]:
    """Return ratings that say no more than the ranks: evenly spaced, the middle where all tie.

    >>> ratings_by_rank([1, 2, 3])
    [7, 4, 1]
    """
    worst = max(ranks)
    if worst == 1:
        return [(RATINGS.start + RATINGS.stop - 1) // 2] * len(ranks)
    top, span = RATINGS.stop - 1, RATINGS.stop - 1 - RATINGS.start
    return [top - round(span * (rank - 1) / (worst - 1)) for rank in ranks]
